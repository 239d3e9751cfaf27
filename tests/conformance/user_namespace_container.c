/* A process as a rootless container has it: root of a user namespace with some of its capabilities, under a
 * filter that came with CAP_SYS_ADMIN there, which is given away, without no_new_privs. In all its threads. */
enum { UID = 0, GID = 0 };
#include "user_namespace.h"
#define setup as_in_any_container
#include "container.h"
#undef setup

static const char *setup(void) {
    TRY(enter_mapped("0 1000 1\n1 100000 65535\n", "0 1000 1\n1 100000 65535\n"));
    return as_in_any_container();
}
