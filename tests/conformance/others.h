/* Threads beside the main one that say what they find when they are asked. */
#ifndef OTHERS_H
#define OTHERS_H
#include "conform.h"
#include <pthread.h>
#include <semaphore.h>

static sem_t others_ask, others_answer;
static const char *(*others_look)(void), *others_found;

static void *other(void *arg) {
    for (;;) {
        while (sem_wait(&others_ask) != 0) {
        }
        others_found = others_look();
        sem_post(&others_answer);
    }
    return arg;
}

/* Starts so many, each of which looks so. */
static const char *start_others(int count, const char *(*look)(void)) {
    pthread_t thread;
    others_look = look;
    EXPECT(sem_init(&others_ask, 0, 0) == 0 && sem_init(&others_answer, 0, 0) == 0);
    for (int n = 0; n < count; n++) EXPECT(pthread_create(&thread, NULL, other, NULL) == 0);
    return NULL;
}

/* What one of them finds. */
static const char *ask_other(void) {
    EXPECT(sem_post(&others_ask) == 0 && sem_wait(&others_answer) == 0);
    return others_found;
}
#endif
