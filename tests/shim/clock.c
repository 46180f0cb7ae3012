/*
 * Clocks that a test can move: preloaded into a program, it adds what the control file says to what the kernel's clocks say.
 * The vdso is out of the way, because the program's calls to libc end here and go on as system calls.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* Nanoseconds to add; written by tests while the program runs. */
struct control {
    volatile int64_t wall;    /* CLOCK_REALTIME */
    volatile int64_t running; /* CLOCK_BOOTTIME and CLOCK_MONOTONIC */
};

static const struct control *control;

__attribute__((constructor)) static void start(void)
{
    const char *name = getenv("GATEPOST_CLOCK");
    int file = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        abort();
    void *mapped = mmap(NULL, sizeof(struct control), PROT_READ, MAP_SHARED, file, 0);
    if (mapped == MAP_FAILED)
        abort();
    close(file);
    control = mapped;
}

static void add(struct timespec *time, int64_t more)
{
    int64_t sum = (int64_t)time->tv_sec * 1000000000 + time->tv_nsec + more;
    time->tv_sec = sum / 1000000000;
    time->tv_nsec = sum % 1000000000;
}

int clock_gettime(clockid_t id, struct timespec *time)
{
    int result = (int)syscall(SYS_clock_gettime, id, time);
    if (result != 0 || !control)
        return result;
    switch (id) {
    case CLOCK_REALTIME:
    case CLOCK_REALTIME_COARSE:
        add(time, control->wall);
        break;
    case CLOCK_BOOTTIME:
    case CLOCK_MONOTONIC:
    case CLOCK_MONOTONIC_COARSE:
    case CLOCK_MONOTONIC_RAW:
        add(time, control->running);
        break;
    default:
        break;
    }
    return 0;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone)
{
    struct timespec now;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &now) != 0)
        return -1;
    time->tv_sec = now.tv_sec;
    time->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *result)
{
    struct timespec now;
    if (clock_gettime(CLOCK_REALTIME, &now) != 0)
        return -1;
    if (result)
        *result = now.tv_sec;
    return now.tv_sec;
}
