/* Generic netlink: a socket in a group of a family, which a child's is in as well. */
#include "conform.h"
#include <linux/genetlink.h>
#include <linux/netlink.h>

static int fd, tag = 4;

static const char *setup(void) {
    /* What the kernel tells of families, "notify" of "nlctrl", has had this number ever since. */
    int group = GENL_ID_CTRL;
    fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_GENERIC);
    EXPECT(fd >= 0);
    EXPECT(setsockopt(fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof group) == 0);
    return NULL;
}

static const char *holds(int wanted) {
    uint32_t groups[8] = {0};
    socklen_t len = sizeof groups;
    EXPECT(tag == wanted && is_cloexec(fd));
    EXPECT(getsockopt(fd, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, groups, &len) == 0);
    EXPECT(groups[0] == 1u << (GENL_ID_CTRL - 1));
    for (int i = 1; i < 8; i++) EXPECT(groups[i] == 0);
    /* It still asks, too: for the family of families. */
    struct {
        struct nlmsghdr head;
        struct genlmsghdr control;
        struct nlattr attribute;
        uint16_t id, pad;
    } request = {.head = {.nlmsg_len = 26, .nlmsg_type = GENL_ID_CTRL, .nlmsg_flags = NLM_F_REQUEST},
                 .control = {.cmd = CTRL_CMD_GETFAMILY, .version = 1},
                 .attribute = {.nla_len = 6, .nla_type = CTRL_ATTR_FAMILY_ID},
                 .id = GENL_ID_CTRL};
    static char reply[8192];
    EXPECT(send(fd, &request, 28, 0) == 28 && recv(fd, reply, sizeof reply, 0) > 20);
    EXPECT(((struct nlmsghdr *)reply)->nlmsg_type == GENL_ID_CTRL);
    return NULL;
}

static const char *check(void) { return holds(4); }
static const char *change(int n) {
    tag = 10 + n;
    return NULL;
}
static const char *verify(int n) { return holds(10 + n); }
