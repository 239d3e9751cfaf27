/* Says what the kernel makes of seccomp filters. Reads, until the end: the number of instructions, these,
 * six arguments, all of 8 bytes. Writes a line: the error of a system call that does not exist, under that
 * filter, or "killed". */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static uint64_t code[4096], args[6];

int main(void) {
    uint64_t count;
    while (fread(&count, 8, 1, stdin) == 1) {
        int ends[2], status;
        if (count > 4096 || fread(code, 8, count, stdin) != count || fread(args, 8, 6, stdin) != 6 ||
            pipe(ends) != 0)
            return 1;
        pid_t pid = fork();
        if (pid == 0) {
            struct sock_fprog program = {(unsigned short)count, (struct sock_filter *)code};
            if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
                prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
                _exit(2);
            long got = syscall(1000, args[0], args[1], args[2], args[3], args[4], args[5]);
            int error = got == -1 ? errno : (int)got;
            _exit(write(ends[1], &error, sizeof error) == sizeof error ? 0 : 3);
        }
        close(ends[1]);
        int error = -1;
        ssize_t got = read(ends[0], &error, sizeof error);
        close(ends[0]);
        if (pid < 0 || waitpid(pid, &status, 0) != pid) return 4;
        if (got != sizeof error && WIFSIGNALED(status))
            puts("killed");
        else if (got != sizeof error)
            printf("ended with %d\n", WEXITSTATUS(status));
        else
            printf("%d\n", error);
        fflush(stdout);
    }
    return 0;
}
