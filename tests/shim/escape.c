// An adapter that tries to get out. Its only argument is a directory; what it tries there and how that ended it writes into
// `results/report` there, one line each, `NAME VERDICT ERRNO`, and `end` at last. It is harmless where it succeeds: it calls what
// changes nothing, with arguments that the kernel would find wrong once it had let the call through.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static FILE *report;
static const char *dir;
static int own_port, other_port;

// What the kernel says when it lets nobody through; anything else means that the call was looked at.
static int is_denial(int error) {
    return error == EPERM || error == EACCES || error == ENOSYS || error == EAGAIN || error == EMFILE || error == EXDEV ||
           error == ETXTBSY;
}

static void say(const char *name, const char *verdict, int error) {
    fprintf(report, "%s %s %d\n", name, verdict, error);
    fflush(report);
}

// `result` is -1 with errno set for a failure.
static void tried(const char *name, long result) {
    int error = result == -1 ? errno : 0;
    if (result != -1) say(name, "allowed", 0);
    else if (is_denial(error)) say(name, "denied", error);
    else if (error == ENOENT || error == ENXIO || error == EAFNOSUPPORT || error == EPROTONOSUPPORT || error == ESOCKTNOSUPPORT)
        say(name, "untestable", error);
    else say(name, "allowed", error);
}

// A call that must be refused before the kernel looks at its arguments.
#define CALL(name, ...) tried(name, (errno = 0, syscall(__VA_ARGS__)))

static char *path(const char *name) {
    static char paths[8][512];
    static int next;
    char *text = paths[next++ % 8];
    snprintf(text, 512, "%s/%s", dir, name);
    return text;
}

static void open_for(const char *name, const char *file, int flags) {
    int fd = open(file, flags | O_CLOEXEC, 0600);
    tried(name, fd);
    if (fd >= 0) close(fd);
}

static void list(const char *name, const char *file) {
    DIR *stream = opendir(file);
    tried(name, stream ? 0 : -1);
    if (stream) closedir(stream);
}

static void socket_of(const char *name, int family, int kind, int protocol) {
    int fd = socket(family, kind, protocol);
    tried(name, fd);
    if (fd >= 0) close(fd);
}

static struct sockaddr_in here(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static void connect_to(const char *name, int port, int fast) {
    struct sockaddr_in address = here(port);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    long result = fd;
    if (fd >= 0 && fast) result = sendto(fd, "x", 1, MSG_FASTOPEN, (struct sockaddr *)&address, sizeof address);
    else if (fd >= 0) result = connect(fd, (struct sockaddr *)&address, sizeof address);
    // Somebody listens there, so a refusal would be the partner's and nobody's.
    if (result == -1 && errno == ECONNREFUSED) say(name, "allowed", errno);
    else tried(name, result);
    if (fd >= 0) close(fd);
}

static int unix_connect(const char *file, int is_abstract) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t length = strlen(file);
    memcpy(address.sun_path + is_abstract, file, length);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    socklen_t size = offsetof(struct sockaddr_un, sun_path) + is_abstract + length;
    if (fd >= 0 && connect(fd, (struct sockaddr *)&address, size) == -1) {
        int error = errno;
        close(fd);
        errno = error;
        return -1;
    }
    return fd;
}

// Asks the gateway for a connection as an adapter does; the socket, or -1 with errno.
static int through_gateway(const char *request, size_t length) {
    char file[512];
    snprintf(file, sizeof file, "%s", getenv("GATEPOST_SOCKET"));
    char *name = strrchr(file, '/');
    if (!name) return -1;
    strcpy(name, "/egress");
    int desk = unix_connect(file, 0);
    if (desk < 0) return -1;
    if (send(desk, request, length, MSG_NOSIGNAL) < 0) {}
    // What has no end of line ends here.
    if (!memchr(request, '\n', length)) shutdown(desk, SHUT_WR);
    char answer[64] = {0}, space[CMSG_SPACE(sizeof(int))];
    struct iovec part = {answer, sizeof answer - 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
    ssize_t got = recvmsg(desk, &message, MSG_CMSG_CLOEXEC);
    struct cmsghdr *passed = got > 0 ? CMSG_FIRSTHDR(&message) : NULL;
    int fd = -1;
    if (passed && passed->cmsg_type == SCM_RIGHTS) memcpy(&fd, CMSG_DATA(passed), sizeof fd);
    close(desk);
    // Whatever it says but that it refuses: it has tried.
    errno = fd < 0 && !strncmp(answer, "failed", 6) ? EIO : EACCES;
    return fd;
}

static void ask_for(const char *name, const char *host, int port) {
    char request[128];
    snprintf(request, sizeof request, "%s:%d\n", host, port);
    int fd = through_gateway(request, strlen(request));
    tried(name, fd);
    if (fd >= 0) close(fd);
}

static void ask_with(const char *name, const char *request, size_t length) {
    int fd = through_gateway(request, length);
    tried(name, fd);
    if (fd >= 0) close(fd);
}

// What the gateway would hand out, opened with its rights.
static void ask_for_file(const char *name, const char *file) {
    char request[600];
    snprintf(request, sizeof request, "%s\n", file);
    int fd = through_gateway(request, strlen(request));
    say(name, fd >= 0 ? "allowed" : "denied", 0);
    if (fd >= 0) close(fd);
}

// Other files, and one that it may have opened and that it has put a link in the place of.
static void files_by_the_gateway(void) {
    ask_for_file("ask-file-shadow", "/etc/shadow");
    ask_for_file("ask-file-key", path("data/keys/audit.key"));
    ask_for_file("ask-file-database", path("data/gatepost.db"));
    ask_for_file("ask-file-beside-named", path("results/lure/../../outside/file"));
    ask_for_file("ask-file-directory", path("results"));
    static char lure[512];
    snprintf(lure, sizeof lure, "%s", path("results/lure"));
    const char *targets[] = {path("data/keys/audit.key"), "/etc/shadow", path("outside/file")};
    for (size_t i = 0; i < sizeof targets / sizeof *targets; i++) {
        char name[64];
        snprintf(name, sizeof name, "ask-file-linked-%zu", i + 1);
        unlink(lure);
        if (symlink(targets[i], lure)) say(name, "untestable", errno);
        else ask_for_file(name, lure);
    }
}

// A child is not the process that the gateway has started.
static void ask_from_a_child(void) {
    pid_t child = fork();
    if (child == 0) {
        char request[64];
        snprintf(request, sizeof request, "127.0.0.1:%d\n", own_port);
        _exit(through_gateway(request, strlen(request)) >= 0 ? 0 : 1);
    }
    int status = 1;
    if (child > 0) waitpid(child, &status, 0);
    say("ask-from-a-child", status == 0 ? "allowed" : "denied", 0);
}

// More at a time than the gateway lets it ask for: the last is turned away.
static void flood_of_questions(void) {
    enum { MOST = 300 };
    static int open_ones[MOST];
    char file[512], answer[8] = {0};
    snprintf(file, sizeof file, "%s", getenv("GATEPOST_SOCKET"));
    char *name = strrchr(file, '/');
    if (!name) return;
    strcpy(name, "/egress");
    for (int i = 0; i < MOST; i++) open_ones[i] = unix_connect(file, 0);
    struct timeval patience = {.tv_sec = 3};
    setsockopt(open_ones[MOST - 1], SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    ssize_t got = recv(open_ones[MOST - 1], answer, sizeof answer - 1, 0);
    say("ask-too-often", got > 0 && !strncmp(answer, "refused", 7) ? "denied" : "allowed", 0);
    for (int i = 0; i < MOST; i++)
        if (open_ones[i] >= 0) close(open_ones[i]);
}

static void connect_from(const char *name, int family, const char *host, int port) {
    struct sockaddr_in six_or_four = here(port);
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    if (family == AF_INET) inet_pton(family, host, &six_or_four.sin_addr);
    else inet_pton(family, host, &six.sin6_addr);
    int fd = socket(family, SOCK_STREAM, 0);
    long result = fd;
    if (fd >= 0 && family == AF_INET) result = connect(fd, (struct sockaddr *)&six_or_four, sizeof six_or_four);
    else if (fd >= 0) result = connect(fd, (struct sockaddr *)&six, sizeof six);
    tried(name, result);
    if (fd >= 0) close(fd);
}

// What leads to other hosts than its partner's. What begins with "hosts:" is for those who connect by themselves.
static void hosts(void) {
    connect_to("hosts:connect-partner-directly", own_port, 0);
    connect_to("hosts:connect-partner-fast", own_port, 1);
    connect_from("hosts:connect-another-host", AF_INET, "127.0.0.2", own_port);
    connect_from("hosts:connect-another-host-6", AF_INET6, "::1", own_port);
    const char *files[] = {"/etc/hosts", "/etc/resolv.conf", "/etc/nsswitch.conf"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char name[64];
        snprintf(name, sizeof name, "hosts:read-%s", strrchr(files[i], '/') + 1);
        if (access(files[i], F_OK)) {
            say(name, "untestable", 0);
            continue;
        }
        int fd = open(files[i], O_RDONLY);
        tried(name, fd);
        if (fd >= 0) close(fd);
    }
    ask_for("ask-another-port", "127.0.0.1", other_port);
    ask_for("ask-another-host", "127.0.0.2", own_port);
    ask_for("ask-name", "localhost", own_port);
    ask_for("ask-hexadecimal", "0x7f.1", own_port);
    ask_for("ask-short", "127.1", own_port);
    ask_for("ask-number", "2130706433", own_port);
    ask_for("ask-octal", "0177.0.0.1", own_port);
    ask_for("ask-mapped", "[::ffff:127.0.0.1]", own_port);
    ask_for("ask-trailing-dot", "127.0.0.1.", own_port);
    ask_for("ask-upper-case-name", "LOCALHOST", own_port);
    ask_for("ask-any", "0.0.0.0", own_port);
    char request[4096];
    snprintf(request, sizeof request, "127.0.0.1:%d", own_port);
    ask_with("ask-without-end", request, strlen(request));
    snprintf(request, sizeof request, "127.0.0.1:%d\n127.0.0.1:%d\n", own_port, other_port);
    ask_with("ask-twice", request, strlen(request));
    memset(request, '0', sizeof request);
    request[sizeof request - 1] = '\n';
    ask_with("ask-at-length", request, sizeof request);
    ask_from_a_child();
    flood_of_questions();
}

static void bind_to(const char *name, int port) {
    struct sockaddr_in address = here(port);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    tried(name, fd < 0 ? fd : bind(fd, (struct sockaddr *)&address, sizeof address));
    if (fd >= 0) close(fd);
}

static void listen_unbound(const char *name) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    tried(name, fd < 0 ? fd : listen(fd, 1));
    if (fd >= 0) close(fd);
}

// To be let in is what counts there: the gateway answers strangers with 401, or hangs up.
static void ask_gateway(const char *name, const char *file) {
    int fd = unix_connect(file, 0);
    if (fd < 0) {
        tried(name, -1);
        return;
    }
    const char *request = "GET /v1/adapters HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    char answer[64] = {0};
    if (send(fd, request, strlen(request), MSG_NOSIGNAL) < 0) answer[0] = 0;
    ssize_t got = recv(fd, answer, sizeof answer - 1, 0);
    int let_in = got > 0 && strncmp(answer, "HTTP/1.1 401", 12) && strncmp(answer, "HTTP/1.1 403", 12);
    say(name, let_in ? "allowed" : "denied", got > 0 ? atoi(answer + 9) : 0);
    close(fd);
}

// In a child, which is what becomes the program.
static void execute(const char *name, const char *file, int fd) {
    char *arguments[] = {"gone", NULL}, *environment[] = {NULL};
    int gate[2];
    if (pipe2(gate, O_CLOEXEC)) return;
    pid_t child = fork();
    if (child == -1) {
        tried(name, -1);
    } else if (child == 0) {
        if (fd >= 0) syscall(SYS_execveat, fd, "", arguments, environment, AT_EMPTY_PATH);
        else execve(file, arguments, environment);
        int error = errno;
        if (write(gate[1], &error, sizeof error) < 0) _exit(2);
        _exit(1);
    } else {
        int error = 0;
        close(gate[1]);
        ssize_t got = read(gate[0], &error, sizeof error);
        errno = error;
        tried(name, got == 0 ? 0 : -1);
        waitpid(child, NULL, 0);
        gate[1] = -1;
    }
    close(gate[0]);
    if (gate[1] >= 0) close(gate[1]);
}

static void files(pid_t gateway) {
    char file[128];
    open_for("read-shadow", "/etc/shadow", O_RDONLY);
    open_for("read-key", path("data/keys/audit.key"), O_RDONLY);
    list("list-keys", path("data/keys"));
    open_for("read-database", path("data/gatepost.db"), O_RDONLY);
    list("list-data", path("data"));
    open_for("read-configuration", path("gatepost.toml"), O_RDONLY);
    open_for("read-outside", path("outside/file"), O_RDONLY);
    open_for("write-outside", path("outside/file"), O_WRONLY);
    open_for("make-outside", path("outside/made"), O_WRONLY | O_CREAT);
    snprintf(file, sizeof file, "/tmp/gatepost-escape-%d", getpid());
    open_for("make-in-tmp", file, O_WRONLY | O_CREAT | O_EXCL);
    unlink(file);
    open_for("unnamed-in-tmp", "/tmp", O_TMPFILE | O_WRONLY);
    snprintf(file, sizeof file, "/etc/gatepost-escape-%d", getpid());
    open_for("make-in-etc", file, O_WRONLY | O_CREAT | O_EXCL);
    unlink(file);
    open_for("write-own-program", path("escape"), O_WRONLY);
    tried("truncate-outside", truncate(path("outside/file"), 0));
    tried("remove-outside", unlink(path("outside/doomed")));
    tried("mkdir-outside", mkdir(path("outside/dir"), 0700));
    tried("symlink-outside", symlink("x", path("outside/link")));
    tried("rename-outside", rename(path("outside/moved"), path("outside/renamed")));
    tried("link-outside-in", link(path("outside/file"), path("results/linked")));
    tried("rename-outside-in", rename(path("outside/moved"), path("results/moved")));
    if (symlink(path("outside/file"), path("results/way-out")) == 0)
        open_for("follow-link-out", path("results/way-out"), O_RDONLY);
    int results = open(path("results"), O_PATH | O_DIRECTORY);
    tried("climb-out", openat(results, "../outside/file", O_RDONLY));
    close(results);
    tried("chmod-outside", chmod(path("outside/file"), 0666));
    tried("chown-outside", chown(path("outside/file"), 1, 1));
    tried("touch-outside", utimensat(AT_FDCWD, path("outside/file"), NULL, 0));
    tried("xattr-outside", syscall(SYS_setxattr, path("outside/file"), "user.x", "x", 1, 0));
    tried("make-device", mknod(path("results/device"), S_IFCHR | 0600, makedev(1, 3)));
    snprintf(file, sizeof file, "/proc/%d/environ", gateway);
    open_for("gateway-environ", file, O_RDONLY);
    snprintf(file, sizeof file, "/proc/%d/mem", gateway);
    open_for("gateway-memory", file, O_RDONLY);
    snprintf(file, sizeof file, "/proc/%d/fd", gateway);
    list("gateway-descriptors", file);
    snprintf(file, sizeof file, "/proc/%d/root", gateway);
    list("gateway-root", file);
    open_for("process-one", "/proc/1/environ", O_RDONLY);
    open_for("kernel-memory", "/proc/kcore", O_RDONLY);
    open_for("device-memory", "/dev/mem", O_RDONLY);
    open_for("kernel-log", "/dev/kmsg", O_RDONLY);
    list("kernel-debug", "/sys/kernel/debug");
    open_for("kernel-setting", "/proc/sys/kernel/core_pattern", O_WRONLY);
    open_for("sysrq", "/proc/sysrq-trigger", O_WRONLY);
    open_for("cgroup", "/sys/fs/cgroup/cgroup.procs", O_WRONLY);
}

// In each of its control groups: raising the limit, and leaving for the one above. `CONTROLLER:PATH` is at a place by custom.
static int in_own_groups;
static void groups(void) {
    FILE *own = fopen("/proc/self/cgroup", "re");
    char line[512], name[64], file[768];
    while (own && fgets(line, sizeof line, own)) {
        char *controllers = strchr(line, ':'), *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!group || !strstr(group, "/adapter-")) continue;
        in_own_groups = 1;
        *group++ = 0;
        group[strcspn(group, "\n")] = 0;
        controllers++;
        struct { const char *of, *limit; } limits[] = {
            {"memory", "memory.limit_in_bytes"}, {"pids", "pids.max"}, {"cpu", "cpu.cfs_quota_us"}, {"", "memory.max"}, {"", "pids.max"},
        };
        for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
            if (*limits[i].of ? !strstr(controllers, limits[i].of) : *controllers) continue;
            snprintf(name, sizeof name, "own-limit-%s", limits[i].limit);
            snprintf(file, sizeof file, "/sys/fs/cgroup/%s%s/%s", controllers, group, limits[i].limit);
            open_for(name, file, O_WRONLY);
            snprintf(name, sizeof name, "leave-limit-%s", limits[i].limit);
            snprintf(file, sizeof file, "/sys/fs/cgroup/%s%s/../cgroup.procs", controllers, group);
            open_for(name, file, O_WRONLY);
            snprintf(name, sizeof name, "make-group-%s", limits[i].limit);
            snprintf(file, sizeof file, "/sys/fs/cgroup/%s%s/below", controllers, group);
            tried(name, mkdir(file, 0700));
            rmdir(file);
        }
    }
    if (own) fclose(own);
    if (!in_own_groups) say("own-limits", "untestable", 0);
}

static void processes(pid_t gateway) {
    struct rlimit limit = {0};
    tried("signal-gateway", kill(gateway, 0));
    tried("signal-process-one", kill(1, 0));
    tried("ptrace-gateway", ptrace(PTRACE_SEIZE, gateway, 0, ~0ul));
    CALL("read-memory-of-gateway", SYS_process_vm_readv, gateway, NULL, 0, NULL, 0, 0);
    CALL("write-memory-of-gateway", SYS_process_vm_writev, gateway, NULL, 0, NULL, 0, 0);
    int fd = syscall(SYS_pidfd_open, gateway, 0);
    CALL("take-descriptor", SYS_pidfd_getfd, fd, 0, 0);
    CALL("signal-by-pidfd", SYS_pidfd_send_signal, fd, 0, NULL, 0);
    if (fd >= 0) close(fd);
    CALL("compare-processes", SYS_kcmp, getpid(), gateway, 0, 0, 0);
    CALL("limits-of-gateway", SYS_prlimit64, gateway, RLIMIT_NOFILE, NULL, &limit);
    CALL("leave-session", SYS_setsid);
    CALL("leave-group", SYS_setpgid, 0, 0);
    tried("outlive-gateway", prctl(PR_SET_PDEATHSIG, 0));
    tried("invite-tracer", prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY));
    tried("move-own-memory", prctl(PR_SET_MM, PR_SET_MM_BRK, 0, 0, 0));
}

static void privileges(void) {
    struct rlimit limit;
    say("gain-by-set-uid", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1 ? "denied" : "allowed", 0);
    int kept = 0;
    for (int capability = 0; capability < 64; capability++) kept += prctl(PR_CAPBSET_READ, capability) == 1;
    // Who is not root and gains nothing by an exec has no use for the set.
    if (kept && getuid() == 0) say("regain-capabilities", "allowed", kept);
    else say("regain-capabilities", "denied", 0);
    unsigned header[2] = {0x20080522, 0}, set[6] = {~0u, ~0u, 0, ~0u, ~0u, 0};
    CALL("set-capabilities", SYS_capset, header, set);
    tried("change-groups", syscall(SYS_setgroups, 0, NULL));
    tried("become-another-user", setresuid(1234, 1234, 1234));
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_max += 1;
    tried("raise-file-limit", setrlimit(RLIMIT_NOFILE, &limit));
    getrlimit(RLIMIT_CORE, &limit);
    say("core-file", limit.rlim_max <= 1 ? "denied" : "allowed", 0);
    getrlimit(RLIMIT_FSIZE, &limit);
    say("endless-file", limit.rlim_max != RLIM_INFINITY ? "denied" : "allowed", 0);
    int highest = -1, fd;
    while ((fd = open("/dev/null", O_RDONLY)) >= 0 && fd < 20000) highest = fd;
    tried("open-too-many-files", fd);
    for (fd = highest; fd > 3; fd--)
        if (fd != fileno(report)) close(fd);
}

static void kernel(void) {
    char many[256] = {0};
    CALL("io-uring", SYS_io_uring_setup, 1, many);
    CALL("userfaultfd", SYS_userfaultfd, 1);
    CALL("bpf", SYS_bpf, 0, NULL, 0);
    CALL("perf-events", SYS_perf_event_open, NULL, 0, -1, -1, 0);
    CALL("keyctl", SYS_keyctl, 0, -3, 0, 0, 0);
    CALL("add-key", SYS_add_key, "user", "x", "y", 1, -2);
    CALL("request-key", SYS_request_key, "user", "x", NULL, 0);
    CALL("fanotify", SYS_fanotify_init, 0, 0);
    CALL("personality", SYS_personality, 0xffffffff);
    CALL("mount", SYS_mount, "none", path("results"), "gatepost-none", 0, NULL);
    CALL("umount", SYS_umount2, path("results"), 0);
    CALL("new-mount", SYS_fsopen, "tmpfs", 0);
    CALL("open-tree", SYS_open_tree, AT_FDCWD, "/", 0);
    CALL("pivot-root", SYS_pivot_root, "/", "/");
    CALL("chroot", SYS_chroot, "/");
    struct { const char *name; int flag; } spaces[] = {
        {"unshare-mounts", CLONE_NEWNS}, {"unshare-cgroups", CLONE_NEWCGROUP}, {"unshare-names", CLONE_NEWUTS},
        {"unshare-ipc", CLONE_NEWIPC}, {"unshare-users", CLONE_NEWUSER}, {"unshare-pids", CLONE_NEWPID},
        {"unshare-network", CLONE_NEWNET}, {"unshare-time", 0x80},
    };
    for (size_t i = 0; i < sizeof spaces / sizeof *spaces; i++) CALL(spaces[i].name, SYS_unshare, spaces[i].flag);
    // No kernel does both at once, and it says so with another error than the sandbox.
    CALL("clone-users", SYS_clone, CLONE_NEWUSER | CLONE_FS, NULL, NULL, NULL, NULL);
    CALL("clone3", SYS_clone3, NULL, 0);
    int space = open("/proc/self/ns/net", O_RDONLY);
    CALL("setns", SYS_setns, space, 0);
    if (space >= 0) close(space);
    CALL("kexec", SYS_kexec_load, 0, 0, NULL, 1u << 31);
    CALL("load-module", SYS_init_module, NULL, 0, NULL);
    CALL("remove-module", SYS_delete_module, "gatepost-no-such-module", 0);
    CALL("handle-of-file", SYS_name_to_handle_at, AT_FDCWD, "/", many, many + 128, 0);
    CALL("open-by-handle", SYS_open_by_handle_at, -1, many, 0);
    CALL("host-name", SYS_sethostname, NULL, -1);
    CALL("domain-name", SYS_setdomainname, NULL, -1);
    CALL("clock", SYS_clock_settime, 99, NULL);
    CALL("time-of-day", SYS_settimeofday, NULL, NULL);
    CALL("adjust-clock", SYS_adjtimex, many);
    CALL("reboot", SYS_reboot, 0, 0, 0, NULL);
    CALL("swap-on", SYS_swapon, "/dev/null", 0);
    CALL("swap-off", SYS_swapoff, "/dev/null");
    CALL("quota", SYS_quotactl, 0, NULL, 0, NULL);
    CALL("accounting", SYS_acct, "/nonexistent");
    CALL("kernel-messages", SYS_syslog, 3, many, 0);
    CALL("move-pages", SYS_move_pages, 1, 0, NULL, NULL, NULL, 0);
    CALL("shared-memory", SYS_shmget, 0, 4096, 0600);
    CALL("message-queue", SYS_msgget, 0, 0600);
    CALL("semaphores", SYS_semget, 0, 1, 0600);
    CALL("posix-queue", SYS_mq_open, "gatepost-no-such-queue", O_RDONLY, 0, NULL);
    CALL("unknown-call", SYS_fcntl + 100000);
#ifdef __x86_64__
    CALL("x32-call", 0x40000000 | SYS_getpid);
    CALL("io-privilege", SYS_iopl, 3);
    CALL("local-descriptors", SYS_modify_ldt, 0, many, 16);
#endif
    tried("type-into-terminal", ioctl(0, TIOCSTI, "x"));
}

static void network(void) {
    connect_to("connect-elsewhere", other_port, 0);
    connect_to("connect-elsewhere-fast", other_port, 1);
    bind_to("bind-elsewhere", other_port + 1);
    bind_to("bind-any", 0);
    listen_unbound("listen-unbound");
    socket_of("raw-socket", AF_INET, SOCK_RAW, IPPROTO_ICMP);
    socket_of("raw-socket-6", AF_INET6, SOCK_RAW, 58);
    socket_of("packet-socket", AF_PACKET, SOCK_RAW, 0);
    socket_of("netlink-socket", AF_NETLINK, SOCK_RAW, 0);
    socket_of("virtual-machine-socket", 40, SOCK_STREAM, 0);
    socket_of("multipath-socket", AF_INET, SOCK_STREAM, 262);
    socket_of("sctp-socket", AF_INET, SOCK_SEQPACKET, 132);
    socket_of("datagrams", AF_INET, SOCK_DGRAM, 0);
    socket_of("datagrams-6", AF_INET6, SOCK_DGRAM, 0);
    socket_of("crypto-socket", 38, SOCK_SEQPACKET, 0);
    char name[64];
    snprintf(name, sizeof name, "gatepost-escape-%d", own_port);
    int fd = unix_connect(name, 1);
    if (fd == -1 && errno == ECONNREFUSED) say("abstract-socket", "untestable", errno);
    else tried("abstract-socket", fd);
    if (fd >= 0) close(fd);
    ask_gateway("operators-socket", path("admin.sock"));
    ask_gateway("apps-socket", path("app.sock"));
    ask_gateway("another-adapters-socket", path("data/run/other/gateway.sock"));
}

static void programs(void) {
    char buffer[65536];
    ssize_t got;
    int from = open("/usr/bin/true", O_RDONLY), to = open(path("results/program"), O_WRONLY | O_CREAT, 0700);
    int memory = memfd_create("program", 0), memory_error = errno;
    while (from >= 0 && (got = read(from, buffer, sizeof buffer)) > 0) {
        if (write(to, buffer, got) != got) break;
        if (memory >= 0 && write(memory, buffer, got) != got) break;
    }
    close(from);
    close(to);
    execute("execute-what-it-wrote", path("results/program"), -1);
    errno = memory_error;
    tried("memory-as-a-file", memory);
    if (memory >= 0) {
        execute("execute-memory", NULL, memory);
        close(memory);
    }
    execute("execute-outside", path("outside/program"), -1);
}

// What each level but the strict one allows.
static void strict_only(void) {
    execute("strict:execute-another", "/usr/bin/true", -1);
    pid_t child = fork();
    if (child == 0) _exit(0);
    tried("strict:fork", child);
    if (child > 0) waitpid(child, NULL, 0);
}

// Where nothing bounds the number of its processes, this would be a test of the machine.
static void fork_bomb(void) {
    enum { MOST = 1500 };
    struct rlimit limit;
    getrlimit(RLIMIT_NPROC, &limit);
    if (!in_own_groups && (getuid() == 0 || limit.rlim_max > MOST)) {
        say("fork-bomb", "untestable", 0);
        return;
    }
    static pid_t children[MOST];
    int count = 0;
    pid_t child = 0;
    while (count < MOST && (child = fork()) > 0) children[count++] = child;
    if (child == 0 && count < MOST) {
        pause();
        _exit(0);
    }
    tried("fork-bomb", child);
    for (int i = 0; i < count; i++) kill(children[i], SIGKILL);
    while (wait(NULL) > 0) {}
}

// What it needs for its work must still go.
static void works(void) {
    char request[64];
    snprintf(request, sizeof request, "127.0.0.1:%d\n", own_port);
    int fd = through_gateway(request, strlen(request));
    struct sockaddr_in partner = {0};
    socklen_t size = sizeof partner;
    int connected = fd >= 0 && getpeername(fd, (struct sockaddr *)&partner, &size) == 0 && ntohs(partner.sin_port) == own_port;
    say("work:connect", connected ? "allowed" : "denied", errno);
    if (fd >= 0) close(fd);
    fd = unix_connect(getenv("GATEPOST_SOCKET"), 0);
    say("work:gateway", fd >= 0 ? "allowed" : "denied", errno);
    if (fd >= 0) close(fd);
    fd = open(path("results/own"), O_RDWR | O_CREAT, 0600);
    say("work:write", fd >= 0 ? "allowed" : "denied", errno);
    if (fd >= 0) close(fd);
    struct stat stat_of;
    say("work:umask", stat(path("results/own"), &stat_of) == 0 ? "allowed" : "denied", errno);
}

int main(int argc, char **argv) {
    // Asked about itself.
    if (argc != 4) return 64;
    dir = argv[1];
    own_port = atoi(argv[2]);
    other_port = atoi(argv[3]);
    report = fopen(path("results/report"), "we");
    if (!report) return 1;
    pid_t gateway = getppid();
    works();
    hosts();
    files_by_the_gateway();
    files(gateway);
    groups();
    processes(gateway);
    network();
    programs();
    strict_only();
    fork_bomb();
    // From here on a success is felt by what comes after.
    kernel();
    privileges();
    tried("ptrace-traceme", ptrace(PTRACE_TRACEME, 0, 0, 0));
    fputs("end\n", report);
    fclose(report);
    for (;;) pause();
}
