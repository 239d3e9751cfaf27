/* A unix dgram socketpair with messages queued, whose bounds stay where they are. */
#define TYPE SOCK_DGRAM
#include "socketpair_messages.h"
