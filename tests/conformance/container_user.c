/* A process as a container has it, uid 1000 without capabilities: the filter came with
 * CAP_SYS_ADMIN, which is given away, and there is no no_new_privs. In all its threads. */
enum { UID = 1000, GID = 1001 };
#include "container.h"
