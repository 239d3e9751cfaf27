/* Pipes and FIFOs between processes: with content, full with a writer that waits, with an end that
 * all have closed, and two ends in two members of which none is the root's. */
/* Prepared with --tree */
#include "tree.h"

enum { WRITE, READ, BLOCK, SUM };
static struct member writer, reader, blocked;
static int content[2], between[2], full[2], closed[2], fifo_read, fifo_write;
static long *written;

const char *files(void) {
    unlink("fifo");
    EXPECT(mkfifo("fifo", 0600) == 0);
    return NULL;
}

static void only_writes(void) {
    close(content[0]), close(between[0]), close(fifo_read), close(full[0]), close(full[1]);
    close(closed[0]);
}
static const char *writes(int what, int n) {
    char text[16];
    if (what == READ) {
        EXPECT(write(fifo_write, "to the fifo", 11) == 11);
        return NULL;
    }
    snprintf(text, sizeof text, "from %2d", n);
    EXPECT(write(between[1], text, 7) == 7 && write(content[1], text, 7) == 7);
    return NULL;
}

static void only_reads(void) {
    close(between[1]), close(content[0]), close(content[1]), close(fifo_write);
    close(full[0]), close(full[1]), close(closed[0]), close(closed[1]);
}
static const char *reads(int what, int n) {
    char text[64], wanted[64];
    if (what == SUM) {
        EXPECT(read(fifo_read, text, sizeof text) == 11 && !memcmp(text, "to the fifo", 11));
        return NULL;
    }
    snprintf(wanted, sizeof wanted, "between waitsfrom %2d", n);
    size_t len = strlen(wanted);
    for (size_t have = 0; have < len;) {
        ssize_t got = read(between[0], text + have, len - have);
        EXPECT(got > 0);
        have += (size_t)got;
    }
    EXPECT(!memcmp(text, wanted, len));
    return NULL;
}

/* Writes for ever, and mostly waits. */
static void blocks(void) {
    uint8_t page[4096];
    close(full[0]);
    for (;; ++*written) {
        memset(page, (int)(*written & 0xff), sizeof page);
        if (write(full[1], page, sizeof page) != sizeof page) _exit(3);
    }
}

static const char *setup(void) {
    written = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    EXPECT(written != MAP_FAILED);
    EXPECT(pipe(content) == 0 && pipe(between) == 0 && pipe(full) == 0 && pipe(closed) == 0);
    EXPECT((fifo_read = open("fifo", O_RDONLY | O_NONBLOCK)) >= 0);
    EXPECT((fifo_write = open("fifo", O_WRONLY)) >= 0);
    EXPECT(write(content[1], "content waits", 13) == 13);
    EXPECT(write(between[1], "between waits", 13) == 13);
    EXPECT(write(closed[1], "last words", 10) == 10);
    TRY(begin(&writer, only_writes, writes));
    TRY(begin(&reader, only_reads, reads));
    TRY(begin(&blocked, blocks, NULL));
    close(content[1]), close(between[0]), close(between[1]), close(full[1]);
    close(closed[1]), close(fifo_read), close(fifo_write);
    EXPECT(sleeps(blocked.pid));
    return NULL;
}

static const char *check(void) {
    int queued = 0;
    EXPECT(ioctl(content[0], FIONREAD, &queued) == 0 && queued == 13);
    EXPECT(ioctl(full[0], FIONREAD, &queued) == 0 && queued == 65536 && *written == 16);
    EXPECT(kill(writer.pid, 0) == 0 && kill(reader.pid, 0) == 0 && kill(blocked.pid, 0) == 0);
    EXPECT(sleeps(blocked.pid));
    return NULL;
}

static const char *change(int n) {
    char text[64];
    uint8_t page[4096];
    TRY(tell(&writer, WRITE, n));
    TRY(tell(&reader, READ, n));
    EXPECT(read(content[0], text, 13) == 13 && !memcmp(text, "content waits", 13));
    EXPECT(read(content[0], text, 7) == 7 && atoi(text + 5) == n);
    for (int i = 0; i < 16 + n; i++) {
        for (size_t have = 0; have < sizeof page;) {
            ssize_t got = read(full[0], page + have, sizeof page - have);
            EXPECT(got > 0);
            have += (size_t)got;
        }
        EXPECT(page[0] == i && page[4095] == i);
    }
    TRY(tell(&writer, READ, n));
    EXPECT(read(closed[0], text, 10) == 10 && !memcmp(text, "last words", 10));
    return NULL;
}

static const char *verify(int n) {
    int queued = 0;
    for (int i = 0; i < 100 && *written < 32 + n; i++) usleep(10000);
    EXPECT(*written == 32 + n);
    EXPECT(ioctl(full[0], FIONREAD, &queued) == 0 && queued == 65536);
    EXPECT(ioctl(content[0], FIONREAD, &queued) == 0 && queued == 0);
    EXPECT(kill(blocked.pid, 0) == 0);
    /* The writer still has the other end. */
    EXPECT(!readable(closed[0]));
    return NULL;
}
