/* A process as a container has it, root with Docker's default capabilities: the filter came with
 * CAP_SYS_ADMIN, which is given away, and there is no no_new_privs. In all its threads. */
enum { UID = 0, GID = 0 };
#include "container.h"
