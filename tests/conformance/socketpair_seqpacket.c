/* A unix seqpacket socketpair with messages queued, whose bounds stay where they are. */
#define TYPE SOCK_SEQPACKET
#include "socketpair_messages.h"
