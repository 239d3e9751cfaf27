/* Netlink sockets: a bound one that asks for interfaces, one that hears of changes, one not bound; and
 * one in which an answer waits, which stays with the parent. */
#include "conform.h"
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>

static int asks, hears, fresh, answered, tag = 4;
static uint32_t port;

static const char *send_request(int fd) {
    struct {
        struct nlmsghdr head;
        struct ifinfomsg link;
    } request = {.head = {.nlmsg_len = sizeof request, .nlmsg_type = RTM_GETLINK,
                          .nlmsg_flags = NLM_F_REQUEST, .nlmsg_seq = 7},
                 .link = {.ifi_family = AF_UNSPEC, .ifi_index = 1}};
    EXPECT(send(fd, &request, sizeof request, 0) == sizeof request);
    return NULL;
}

static const char *setup(void) {
    struct sockaddr_nl at = {.nl_family = AF_NETLINK, .nl_pid = 4711};
    struct sockaddr_nl groups = {.nl_family = AF_NETLINK, .nl_groups = RTMGRP_LINK};
    int one = 1;
    asks = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    hears = socket(AF_NETLINK, SOCK_DGRAM | SOCK_NONBLOCK, NETLINK_ROUTE);
    fresh = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
    EXPECT(bind(asks, (struct sockaddr *)&at, sizeof at) == 0);
    EXPECT(bind(hears, (struct sockaddr *)&groups, sizeof groups) == 0);
    EXPECT(setsockopt(asks, SOL_NETLINK, NETLINK_EXT_ACK, &one, sizeof one) == 0);
    socklen_t len = sizeof at;
    EXPECT(getsockname(hears, (struct sockaddr *)&at, &len) == 0);
    port = at.nl_pid;
    answered = socket(AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK, NETLINK_ROUTE);
    return send_request(answered);
}

/* Whether the kernel answers that there is a loopback. */
static const char *ask(int fd, uint32_t from) {
    static char reply[16384];
    TRY(send_request(fd));
    EXPECT(recv(fd, reply, sizeof reply, 0) > 0);
    struct nlmsghdr *head = (struct nlmsghdr *)reply;
    EXPECT(head->nlmsg_type == RTM_NEWLINK && head->nlmsg_seq == 7);
    EXPECT(from == 0 || head->nlmsg_pid == from);
    return NULL;
}

static const char *holds(int wanted) {
    struct sockaddr_nl at = {0};
    socklen_t len = sizeof at;
    int on = 0;
    EXPECT(tag == wanted && is_cloexec(asks) && (flags_of(hears) & O_NONBLOCK));
    EXPECT(getsockname(hears, (struct sockaddr *)&at, &len) == 0);
    EXPECT(at.nl_pid == port && at.nl_groups == RTMGRP_LINK);
    len = sizeof on;
    EXPECT(getsockopt(asks, SOL_NETLINK, NETLINK_EXT_ACK, &on, &len) == 0 && on == 1);
    if (is_parent()) return readable(answered) ? ask(asks, 4711) : "no answer waits";
    EXPECT(!readable(answered));
    TRY(ask(answered, 0));
    return ask(asks, 4711);
}

static const char *check(void) { return holds(4); }
static const char *change(int n) {
    tag = 10 + n;
    return ask(fresh, 0);
}
static const char *verify(int n) { return holds(10 + n); }
