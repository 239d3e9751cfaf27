/* Processes that are made afterwards: by fork, vfork and exec, posix_spawn, and popen; with memory
 * that the process has not touched yet. */
#include "conform.h"
#include <spawn.h>
#include <sys/wait.h>

#define SIZE (1ul << 20)
static uint8_t *memory;

static const char *setup(void) {
    memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT(memory != MAP_FAILED);
    fill(memory, SIZE, 1);
    return NULL;
}

static const char *ended(pid_t pid, int code) {
    int status;
    EXPECT(pid > 0 && waitpid(pid, &status, 0) == pid);
    EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == code);
    return NULL;
}

static const char *holds(unsigned seed) {
    char *argv[] = {"sh", "-c", "exit 7", NULL}, *envp[] = {NULL}, line[64] = "";
    pid_t pid = fork();
    if (pid == 0) _exit(filled(memory, SIZE, seed) ? 5 : 6);
    TRY(ended(pid, 5));
    pid = vfork();
    if (pid == 0) {
        execve("/bin/sh", argv, envp);
        _exit(9);
    }
    TRY(ended(pid, 7));
    EXPECT(posix_spawn(&pid, "/bin/sh", NULL, NULL, argv, envp) == 0);
    TRY(ended(pid, 7));
    FILE *said = popen("echo said", "r");
    EXPECT(said != NULL && fgets(line, sizeof line, said) != NULL && pclose(said) == 0);
    EXPECT(!strcmp(line, "said\n"));
    EXPECT(waitpid(-1, NULL, 0) == -1 && errno == ECHILD);
    return NULL;
}

static const char *check(void) { return holds(1); }
static const char *change(int n) {
    fill(memory, SIZE, 10 + (unsigned)n);
    return NULL;
}
static const char *verify(int n) { return holds(10 + (unsigned)n); }
