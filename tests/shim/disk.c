/*
 * A disk that can be asked what it was told, and told to fail: preloaded into a program, it writes down everything that the
 * program changes below one directory, and which of it was synced. What a crash would leave of that is worked out
 * afterwards, from what was written down (tests/src/disk).
 *
 * It never changes what the program sees, unless the control file tells it to fail. Every record is written after its
 * operation has succeeded and before the program learns of it: so a program that is killed knows of nothing that is not in
 * the record. Operations that the record cannot express end the program, lest a test believe in half a record.
 *
 * Files that end in "-shm" are shared memory of running programs: nobody expects them to survive, and they are not recorded.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind {
    WRITE = 1,       /* a: inode, b: offset; the bytes */
    SIZE = 2,        /* a: inode, b: new size */
    CREATE = 3,      /* a: inode, b: mode; the path */
    MKDIR = 4,       /* a: inode, b: mode; the path */
    LINK = 5,        /* a: inode; the new path */
    UNLINK = 6,      /* the path */
    RENAME = 7,      /* both paths, a zero byte between them */
    RMDIR = 8,       /* the path */
    SYNC = 9,        /* a: inode, b: length of the record when it began; the path */
    SYNCFS = 10,     /* b: likewise; the path that it was called with */
    SYNC_FAILED = 11,  /* a: inode, b: likewise; the path */
    SYNCFS_FAILED = 12 /* likewise, of everything below */
};

struct record {
    uint32_t length; /* of what follows the record's head */
    uint32_t kind;
    uint64_t a, b;
};

/* Written by tests, read by the program under test, and the other way round where it counts down. */
struct control {
    uint64_t free_bytes;   /* what files may still grow by; all ones: without limit */
    uint64_t kill_at;      /* the process is killed after so many further records; 0: never */
    uint64_t write_errors; /* so many writes fail with EIO */
    uint64_t sync_errors;  /* so many syncs fail with EIO */
    char write_glob[256];  /* whose */
    char sync_glob[256];
};

#define UNLIMITED UINT64_MAX

static char root[PATH_MAX], parent[PATH_MAX];
static size_t root_length;
static int journal = -1;
static volatile struct control *control;
/* Operations and their records are one step. */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) ((__typeof__(&name))real(#name))

static void *real(const char *name) {
    void *found = dlsym(RTLD_NEXT, name);
    if (!found) abort();
    return found;
}

static void give_up(const char *why, const char *path) {
    dprintf(2, "the recorded disk cannot express this: %s (%s)\n", why, path);
    abort();
}

__attribute__((constructor)) static void start(void) {
    const char *at = getenv("GATEPOST_DISK_ROOT");
    const char *record = getenv("GATEPOST_DISK_JOURNAL"), *orders = getenv("GATEPOST_DISK_CONTROL");
    if (!at || !record || !orders) return;
    if (strlen(at) >= sizeof root) abort();
    strcpy(root, at);
    root_length = strlen(root);
    strcpy(parent, at);
    char *slash = strrchr(parent, '/');
    if (!slash || slash == parent) abort();
    *slash = 0;
    int file = (int)syscall(SYS_openat, AT_FDCWD, orders, O_RDWR | O_CLOEXEC, 0);
    if (file < 0) abort();
    control = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (control == MAP_FAILED) abort();
    journal = (int)syscall(SYS_openat, AT_FDCWD, record, O_WRONLY | O_APPEND | O_CLOEXEC, 0);
    if (journal < 0) abort();
}

static int below_root(const char *path) {
    return journal >= 0 && strncmp(path, root, root_length) == 0 &&
           (path[root_length] == 0 || path[root_length] == '/');
}

static int shared_memory(const char *path) {
    size_t length = strlen(path);
    return length > 4 && strcmp(path + length - 4, "-shm") == 0;
}

static uint64_t journal_length(void) {
    struct stat status;
    if (fstat(journal, &status) != 0) abort();
    return (uint64_t)status.st_size;
}

static void put(enum kind kind, uint64_t a, uint64_t b, const void *bytes, size_t length) {
    struct record head = {(uint32_t)length, kind, a, b};
    struct iovec parts[2] = {{&head, sizeof head}, {(void *)bytes, length}};
    if (syscall(SYS_writev, journal, parts, 2) != (long)(sizeof head + length)) abort();
    if (control->kill_at && --control->kill_at == 0) syscall(SYS_kill, getpid(), SIGKILL);
}

static void put_path(enum kind kind, uint64_t a, uint64_t b, const char *path) {
    put(kind, a, b, path, strlen(path));
}

/* Where a descriptor leads, if that is a file or directory below the root. */
static int recorded(int fd, struct stat *status, char path[PATH_MAX]) {
    if (journal < 0 || fstat(fd, status) != 0) return 0;
    if (!S_ISREG(status->st_mode) && !S_ISDIR(status->st_mode)) return 0;
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return below_root(path) || (S_ISDIR(status->st_mode) && strcmp(path, parent) == 0);
}

/* The absolute path of a name, whose last part need not exist; whether it is below the root. */
static int resolve(int dir, const char *name, char path[PATH_MAX]) {
    if (journal < 0 || !name || !*name) return 0;
    char given[PATH_MAX], above[PATH_MAX];
    if (name[0] == '/' || dir == AT_FDCWD) {
        if (snprintf(given, sizeof given, "%s", name) >= PATH_MAX) return 0;
    } else {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
        ssize_t length = readlink(link, above, PATH_MAX - 1);
        if (length <= 0) return 0;
        above[length] = 0;
        if (snprintf(given, sizeof given, "%s/%s", above, name) >= PATH_MAX) return 0;
    }
    size_t length = strlen(given);
    while (length > 1 && given[length - 1] == '/') given[--length] = 0;
    char *slash = strrchr(given, '/');
    const char *last = slash ? slash + 1 : given;
    if (slash == given) {
        strcpy(above, "/");
    } else {
        if (slash) *slash = 0;
        if (!realpath(slash ? given : ".", above)) return 0;
    }
    if (snprintf(path, PATH_MAX, "%s/%s", above, last) >= PATH_MAX) return 0;
    return below_root(path) && !shared_memory(path);
}

/* Counts an error down that the control file asks for. */
static int fails(volatile uint64_t *errors, volatile char *glob, const char *path) {
    if (!*errors || fnmatch((const char *)glob, path, 0) != 0) return 0;
    *errors -= 1;
    return 1;
}

static void give_back(uint64_t bytes) {
    if (control->free_bytes != UNLIMITED) control->free_bytes += bytes;
}

/* ---- bytes ---- */

typedef ssize_t writer(int fd, const void *bytes, size_t count, off_t offset);

static ssize_t at_position(int fd, const void *bytes, size_t count, off_t offset) {
    (void)offset;
    return syscall(SYS_write, fd, bytes, count);
}

static ssize_t at_offset(int fd, const void *bytes, size_t count, off_t offset) {
    return syscall(SYS_pwrite64, fd, bytes, count, offset);
}

/* `offset` is negative for the descriptor's own position. */
static ssize_t write_recorded(int fd, const void *bytes, size_t count, off_t offset) {
    struct stat status;
    char path[PATH_MAX];
    writer *write_it = offset < 0 ? at_position : at_offset;
    if (!recorded(fd, &status, path) || !S_ISREG(status.st_mode)) return write_it(fd, bytes, count, offset);
    pthread_mutex_lock(&mutex);
    ssize_t written = -1;
    if (fails(&control->write_errors, control->write_glob, path)) {
        errno = EIO;
        goto out;
    }
    if (fstat(fd, &status) != 0) goto out;
    int flags = fcntl(fd, F_GETFL);
    if (flags & (O_DSYNC | O_SYNC)) give_up("O_SYNC", path);
    if (flags & O_APPEND) {
        offset = status.st_size;
    } else if (offset < 0) {
        offset = lseek(fd, 0, SEEK_CUR);
    }
    uint64_t grows = (uint64_t)offset + count > (uint64_t)status.st_size
                         ? (uint64_t)offset + count - (uint64_t)status.st_size
                         : 0;
    if (control->free_bytes != UNLIMITED && grows > control->free_bytes) {
        uint64_t missing = grows - control->free_bytes;
        if (missing >= count) {
            errno = ENOSPC;
            goto out;
        }
        count -= missing;
        grows -= missing;
    }
    written = write_it(fd, bytes, count, offset);
    if (written > 0 && !shared_memory(path)) {
        put(WRITE, status.st_ino, (uint64_t)offset, bytes, (size_t)written);
    }
    if (written > 0 && control->free_bytes != UNLIMITED) control->free_bytes -= grows;
out:
    pthread_mutex_unlock(&mutex);
    return written;
}

ssize_t write(int fd, const void *bytes, size_t count) { return write_recorded(fd, bytes, count, -1); }
ssize_t pwrite(int fd, const void *bytes, size_t count, off_t at) { return write_recorded(fd, bytes, count, at); }
ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t at) {
    return write_recorded(fd, bytes, count, at);
}

static ssize_t write_gathered(int fd, const struct iovec *parts, int count, off_t offset) {
    struct stat status;
    char path[PATH_MAX];
    if (!recorded(fd, &status, path) || !S_ISREG(status.st_mode)) {
        return offset < 0 ? syscall(SYS_writev, fd, parts, count)
                          : syscall(SYS_pwritev, fd, parts, count, offset, 0);
    }
    size_t length = 0;
    for (int i = 0; i < count; i++) length += parts[i].iov_len;
    char *whole = malloc(length ? length : 1);
    if (!whole) abort();
    size_t at = 0;
    for (int i = 0; i < count; at += parts[i].iov_len, i++) memcpy(whole + at, parts[i].iov_base, parts[i].iov_len);
    ssize_t written = write_recorded(fd, whole, length, offset);
    free(whole);
    return written;
}

ssize_t writev(int fd, const struct iovec *parts, int count) { return write_gathered(fd, parts, count, -1); }
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) {
    return write_gathered(fd, parts, count, at);
}
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t at) {
    return write_gathered(fd, parts, count, at);
}

/* Copies inside the kernel show no bytes; who is refused copies by reading and writing. */
static int is_recorded_file(int fd) {
    struct stat status;
    char path[PATH_MAX];
    return recorded(fd, &status, path) && S_ISREG(status.st_mode);
}

ssize_t copy_file_range(int in, off64_t *in_at, int out, off64_t *out_at, size_t count, unsigned flags) {
    if (is_recorded_file(out)) {
        errno = EXDEV;
        return -1;
    }
    return syscall(SYS_copy_file_range, in, in_at, out, out_at, count, flags);
}

ssize_t sendfile(int out, int in, off_t *at, size_t count) {
    if (is_recorded_file(out)) {
        errno = EINVAL;
        return -1;
    }
    return syscall(SYS_sendfile, out, in, at, count);
}

ssize_t sendfile64(int out, int in, off64_t *at, size_t count) { return sendfile(out, in, (off_t *)at, count); }

ssize_t splice(int in, off64_t *in_at, int out, off64_t *out_at, size_t count, unsigned flags) {
    if (is_recorded_file(out)) {
        errno = EINVAL;
        return -1;
    }
    return syscall(SYS_splice, in, in_at, out, out_at, count, flags);
}

static void record_size(const struct stat *before, int fd, const char *path) {
    struct stat after;
    if (fstat(fd, &after) != 0) abort();
    if (after.st_size < before->st_size) give_back((uint64_t)(before->st_size - after.st_size));
    if (after.st_size != before->st_size && !shared_memory(path)) {
        put(SIZE, after.st_ino, (uint64_t)after.st_size, NULL, 0);
    }
}

static int truncate_recorded(int fd, off_t size) {
    struct stat before;
    char path[PATH_MAX];
    if (!recorded(fd, &before, path)) return (int)syscall(SYS_ftruncate, fd, size);
    pthread_mutex_lock(&mutex);
    int result = -1;
    if (fails(&control->write_errors, control->write_glob, path)) {
        errno = EIO;
    } else if (fstat(fd, &before) == 0 && (result = (int)syscall(SYS_ftruncate, fd, size)) == 0) {
        record_size(&before, fd, path);
    }
    pthread_mutex_unlock(&mutex);
    return result;
}

int ftruncate(int fd, off_t size) { return truncate_recorded(fd, size); }
int ftruncate64(int fd, off64_t size) { return truncate_recorded(fd, size); }

static int truncate_named(const char *name, off_t size) {
    int fd = (int)syscall(SYS_openat, AT_FDCWD, name, O_WRONLY | O_CLOEXEC, 0);
    if (fd < 0) return -1;
    int result = truncate_recorded(fd, size), error = errno;
    syscall(SYS_close, fd);
    errno = error;
    return result;
}

int truncate(const char *name, off_t size) { return truncate_named(name, size); }
int truncate64(const char *name, off64_t size) { return truncate_named(name, size); }

static int allocate_recorded(int fd, int mode, off_t offset, off_t length) {
    struct stat before;
    char path[PATH_MAX];
    if (!recorded(fd, &before, path)) return (int)syscall(SYS_fallocate, fd, mode, offset, length);
    if (mode & ~FALLOC_FL_KEEP_SIZE) give_up("fallocate", path);
    pthread_mutex_lock(&mutex);
    int result = -1;
    uint64_t end = (uint64_t)offset + (uint64_t)length;
    if (fstat(fd, &before) != 0) {
    } else if (control->free_bytes != UNLIMITED && end > (uint64_t)before.st_size + control->free_bytes) {
        errno = ENOSPC;
    } else if ((result = (int)syscall(SYS_fallocate, fd, mode, offset, length)) == 0) {
        if (control->free_bytes != UNLIMITED && end > (uint64_t)before.st_size) {
            control->free_bytes -= end - (uint64_t)before.st_size;
        }
        record_size(&before, fd, path);
    }
    pthread_mutex_unlock(&mutex);
    return result;
}

int fallocate(int fd, int mode, off_t at, off_t length) { return allocate_recorded(fd, mode, at, length); }
int fallocate64(int fd, int mode, off64_t at, off64_t length) { return allocate_recorded(fd, mode, at, length); }
int posix_fallocate(int fd, off_t at, off_t length) { return allocate_recorded(fd, 0, at, length) ? errno : 0; }
int posix_fallocate64(int fd, off64_t at, off64_t length) { return posix_fallocate(fd, at, length); }

static void *map_recorded(void *at, size_t length, int protection, int flags, int fd, off_t offset) {
    struct stat status;
    char path[PATH_MAX];
    int writes = (protection & PROT_WRITE) && (flags & (MAP_SHARED | MAP_SHARED_VALIDATE));
    if (writes && fd >= 0 && recorded(fd, &status, path) && !shared_memory(path)) give_up("a writable map", path);
    return (void *)syscall(SYS_mmap, at, length, protection, flags, fd, offset);
}

void *mmap(void *at, size_t length, int protection, int flags, int fd, off_t offset) {
    return map_recorded(at, length, protection, flags, fd, offset);
}
void *mmap64(void *at, size_t length, int protection, int flags, int fd, off64_t offset) {
    return map_recorded(at, length, protection, flags, fd, offset);
}

/* ---- syncs ---- */

static int sync_recorded(int fd, long call) {
    struct stat status;
    char path[PATH_MAX];
    if (!recorded(fd, &status, path)) return (int)syscall(call, fd);
    pthread_mutex_lock(&mutex);
    uint64_t began = journal_length();
    int failing = fails(&control->sync_errors, control->sync_glob, path);
    if (failing) put_path(call == SYS_syncfs ? SYNCFS_FAILED : SYNC_FAILED, status.st_ino, began, path);
    pthread_mutex_unlock(&mutex);
    if (failing) {
        errno = EIO;
        return -1;
    }
    int result = (int)syscall(call, fd);
    if (result == 0) {
        pthread_mutex_lock(&mutex);
        put_path(call == SYS_syncfs ? SYNCFS : SYNC, status.st_ino, began, path);
        pthread_mutex_unlock(&mutex);
    }
    return result;
}

int fsync(int fd) { return sync_recorded(fd, SYS_fsync); }
int fdatasync(int fd) { return sync_recorded(fd, SYS_fdatasync); }
int syncfs(int fd) { return sync_recorded(fd, SYS_syncfs); }

/* ---- names ---- */

static int open_recorded(int dir, const char *name, int flags, mode_t mode) {
    char path[PATH_MAX];
    int creates = (flags & O_CREAT) || (flags & O_TRUNC);
    if ((flags & O_TMPFILE) == O_TMPFILE && resolve(dir, name, path)) give_up("O_TMPFILE", path);
    if (!creates || !resolve(dir, name, path)) return (int)syscall(SYS_openat, dir, name, flags, mode);
    pthread_mutex_lock(&mutex);
    struct stat before, after;
    int existed = fstatat(AT_FDCWD, path, &before, 0) == 0;
    int fd = (int)syscall(SYS_openat, dir, name, flags, mode);
    if (fd >= 0 && fstat(fd, &after) == 0 && S_ISREG(after.st_mode)) {
        if (!existed) {
            put_path(CREATE, after.st_ino, after.st_mode & 07777, path);
        } else {
            record_size(&before, fd, path);
        }
    }
    pthread_mutex_unlock(&mutex);
    return fd;
}

#define OPEN(name)                                         \
    int name(const char *path, int flags, ...) {           \
        va_list more;                                      \
        va_start(more, flags);                             \
        mode_t mode = va_arg(more, mode_t);                \
        va_end(more);                                      \
        return open_recorded(AT_FDCWD, path, flags, mode); \
    }
#define OPENAT(name)                                  \
    int name(int dir, const char *path, int flags, ...) { \
        va_list more;                                 \
        va_start(more, flags);                        \
        mode_t mode = va_arg(more, mode_t);           \
        va_end(more);                                 \
        return open_recorded(dir, path, flags, mode); \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

int creat(const char *path, mode_t mode) {
    return open_recorded(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}
int creat64(const char *path, mode_t mode) { return creat(path, mode); }

int mkdirat(int dir, const char *name, mode_t mode) {
    char path[PATH_MAX];
    if (!resolve(dir, name, path)) return (int)syscall(SYS_mkdirat, dir, name, mode);
    pthread_mutex_lock(&mutex);
    struct stat after;
    int result = (int)syscall(SYS_mkdirat, dir, name, mode);
    if (result == 0 && fstatat(AT_FDCWD, path, &after, 0) == 0) {
        put_path(MKDIR, after.st_ino, after.st_mode & 07777, path);
    }
    pthread_mutex_unlock(&mutex);
    return result;
}

int mkdir(const char *name, mode_t mode) { return mkdirat(AT_FDCWD, name, mode); }

/* What a name's disappearance frees: its file's bytes, when it was the last name. */
static uint64_t freed_with(const char *path) {
    struct stat status;
    int last = fstatat(AT_FDCWD, path, &status, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(status.st_mode) &&
               status.st_nlink == 1;
    return last ? (uint64_t)status.st_size : 0;
}

int unlinkat(int dir, const char *name, int flags) {
    char path[PATH_MAX];
    if (!resolve(dir, name, path)) return (int)syscall(SYS_unlinkat, dir, name, flags);
    pthread_mutex_lock(&mutex);
    uint64_t freed = freed_with(path);
    int result = (int)syscall(SYS_unlinkat, dir, name, flags);
    if (result == 0) {
        give_back(freed);
        put_path(flags & AT_REMOVEDIR ? RMDIR : UNLINK, 0, 0, path);
    }
    pthread_mutex_unlock(&mutex);
    return result;
}

int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }

int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags) {
    char path[PATH_MAX];
    if (!resolve(to_dir, to, path)) return (int)syscall(SYS_linkat, from_dir, from, to_dir, to, flags);
    pthread_mutex_lock(&mutex);
    struct stat after;
    int result = (int)syscall(SYS_linkat, from_dir, from, to_dir, to, flags);
    /* Sockets are linked too, and are not recorded. */
    if (result == 0 && fstatat(AT_FDCWD, path, &after, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(after.st_mode)) {
        put_path(LINK, after.st_ino, 0, path);
    }
    pthread_mutex_unlock(&mutex);
    return result;
}

int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }

int symlinkat(const char *target, int dir, const char *name) {
    char path[PATH_MAX];
    if (resolve(dir, name, path)) give_up("a symbolic link", path);
    return (int)syscall(SYS_symlinkat, target, dir, name);
}

int symlink(const char *target, const char *name) { return symlinkat(target, AT_FDCWD, name); }

int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags) {
    char paths[2 * PATH_MAX], target[PATH_MAX];
    int here = resolve(from_dir, from, paths), there = resolve(to_dir, to, target);
    if (!here && !there) return (int)syscall(SYS_renameat2, from_dir, from, to_dir, to, flags);
    if (!here || !there || (flags & ~1U)) give_up("this rename", here ? paths : target);
    pthread_mutex_lock(&mutex);
    uint64_t freed = freed_with(target);
    int result = (int)syscall(SYS_renameat2, from_dir, from, to_dir, to, flags);
    if (result == 0) {
        give_back(freed);
        size_t length = strlen(paths);
        strcpy(paths + length + 1, target);
        put(RENAME, 0, 0, paths, length + 1 + strlen(target));
    }
    pthread_mutex_unlock(&mutex);
    return result;
}

int renameat(int from_dir, const char *from, int to_dir, const char *to) {
    return renameat2(from_dir, from, to_dir, to, 0);
}
int rename(const char *from, const char *to) { return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0); }

/* ---- space ---- */

#define STATVFS(name, type)                                                                            \
    int name(const char *path, struct type *answer) {                                                  \
        int result = REAL(name)(path, answer);                                                         \
        char found[PATH_MAX];                                                                          \
        if (result == 0 && journal >= 0 && realpath(path, found) && below_root(found) &&                \
            control->free_bytes != UNLIMITED && control->free_bytes / answer->f_frsize < answer->f_bavail) { \
            answer->f_bavail = answer->f_bfree = control->free_bytes / answer->f_frsize;               \
        }                                                                                              \
        return result;                                                                                 \
    }
STATVFS(statvfs, statvfs)
STATVFS(statvfs64, statvfs64)
