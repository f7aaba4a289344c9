/* What a container's root tries against the machine it runs on. Prints one line for each attempt: its
 * name, then the error's, or DONE when it was let through. Every attempt is chosen so that it does no
 * harm when it is. Linked statically: the image holds nothing else.
 *
 *   reach VICTIM ADDRESS DEVICES
 *
 * VICTIM is the pid that a process outside has in the host's namespace, ADDRESS one of its memory,
 * DEVICES the host's block devices as MAJOR:MINOR,MAJOR:MINOR… */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/perf_event.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/timex.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef SYS_clone3
#define SYS_clone3 435
#endif

static void said(const char *name, long result) {
    int error = errno;
    printf("%s %s\n", name, result < 0 ? strerrorname_np(error) : "DONE");
}

#define TRY(name, call) (errno = 0, said(name, (long)(call)))

/* Makes a device node and opens it. Making one is allowed, as Docker allows it; opening is not. */
static long open_device(mode_t kind, dev_t device) {
    const char *path = "/tmp/device";
    unlink(path);
    if (mknod(path, kind | 0600, device) != 0) {
        printf("mknod %s\n", strerrorname_np(errno));
        return -1;
    }
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    int error = errno;
    if (fd >= 0)
        close(fd);
    unlink(path);
    errno = error;
    return fd;
}

static void processes(pid_t victim, uintptr_t address) {
    TRY("kill", kill(victim, SIGKILL));
    TRY("kill_group", kill(-victim, SIGKILL));
    TRY("tgkill", syscall(SYS_tgkill, victim, victim, SIGKILL));
    TRY("sigqueue", sigqueue(victim, SIGKILL, (union sigval){0}));
    TRY("pidfd_open", syscall(SYS_pidfd_open, victim, 0));
    TRY("ptrace_attach", ptrace(PTRACE_ATTACH, victim, 0, 0));
    TRY("ptrace_seize", ptrace(PTRACE_SEIZE, victim, 0, 0));
    char text[16];
    struct iovec mine = {text, sizeof text}, theirs = {(void *)address, sizeof text};
    TRY("process_vm_readv", process_vm_readv(victim, &mine, 1, &theirs, 1, 0));
    TRY("process_vm_writev", process_vm_writev(victim, &mine, 1, &theirs, 1, 0));
    TRY("setpriority", setpriority(0, victim, 19));
    TRY("prlimit", syscall(SYS_prlimit64, victim, 7, NULL, NULL));
    TRY("sched_setaffinity", syscall(SYS_sched_setaffinity, victim, 0, NULL));

    /* Every pid there can be, itself excepted: none may be there. */
    int seen = 0;
    pid_t last = 4194304;
    FILE *limit = fopen("/proc/sys/kernel/pid_max", "r");
    if (!limit || fscanf(limit, "%d", &last) != 1)
        puts("pid_max UNREADABLE");
    for (pid_t pid = 1; pid <= last; pid++)
        if (pid != getpid() && (kill(pid, 0) == 0 || errno != ESRCH))
            seen++;
    printf("others %d\n", seen);
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/mem", victim);
    TRY("proc_mem", open(path, O_RDWR));
    /* What the world would look like from the host's first process. */
    TRY("proc_1_root", open("/proc/1/root/../../boot", O_PATH));
}

static long clone_user(void) {
    long child = syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0);
    if (child == 0)
        _exit(0);
    return child;
}

static void namespaces(void) {
    static const struct { const char *name; int flag; } kinds[] = {
        {"user", CLONE_NEWUSER}, {"mnt", CLONE_NEWNS},   {"net", CLONE_NEWNET},
        {"pid", CLONE_NEWPID},   {"ipc", CLONE_NEWIPC},  {"uts", CLONE_NEWUTS},
        {"cgroup", CLONE_NEWCGROUP}, {"time", 0x80},
    };
    char label[64], path[64];
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        snprintf(path, sizeof path, "/proc/1/ns/%s", kinds[i].name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        snprintf(label, sizeof label, "setns_%s", kinds[i].name);
        TRY(label, setns(fd, kinds[i].flag));
        if (fd >= 0)
            close(fd);
        snprintf(label, sizeof label, "unshare_%s", kinds[i].name);
        TRY(label, unshare(kinds[i].flag));
    }
    TRY("unshare_user_mnt", unshare(CLONE_NEWUSER | CLONE_NEWNS));
    TRY("clone_user", clone_user());
    char arguments[64] = {0};
    TRY("clone3", syscall(SYS_clone3, arguments, sizeof arguments));
}

static void mounts(void) {
    mkdir("/tmp/on", 0700);
    TRY("mount_tmpfs", mount("none", "/tmp/on", "tmpfs", 0, ""));
    TRY("mount_proc", mount("none", "/tmp/on", "proc", 0, ""));
    TRY("mount_bind", mount("/proc", "/tmp/on", NULL, MS_BIND, NULL));
    TRY("remount_sys", mount(NULL, "/sys", NULL, MS_REMOUNT | MS_BIND, NULL));
    TRY("umount2", umount2("/proc/sys", MNT_DETACH));
    TRY("fsopen", syscall(430, "tmpfs", 0));
    TRY("open_tree", syscall(428, AT_FDCWD, "/", 0));
    TRY("move_mount", syscall(429, AT_FDCWD, "/tmp", AT_FDCWD, "/tmp/on", 0));
    TRY("mount_setattr", syscall(442, AT_FDCWD, "/", 0, NULL, 0));
    TRY("pivot_root", syscall(SYS_pivot_root, "/", "/tmp/on"));
    struct file_handle *handle = calloc(1, sizeof *handle + 128);
    handle->handle_bytes = 8;
    handle->handle_type = 1;
    TRY("open_by_handle_at", open_by_handle_at(AT_FDCWD, handle, O_RDONLY));
    free(handle);
}

static void kernel(void) {
    TRY("init_module", syscall(SYS_init_module, "", 0, ""));
    TRY("finit_module", syscall(SYS_finit_module, -1, "", 0));
    TRY("delete_module", syscall(SYS_delete_module, "no_such_module", O_NONBLOCK));
    union bpf_attr program = {.map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 4, .max_entries = 1};
    TRY("bpf", syscall(SYS_bpf, BPF_MAP_CREATE, &program, sizeof program));
    struct perf_event_attr event = {.type = PERF_TYPE_SOFTWARE, .size = sizeof event, .config = PERF_COUNT_SW_CPU_CLOCK};
    TRY("perf_event_open", syscall(SYS_perf_event_open, &event, -1, 0, -1, 0));
    TRY("kexec_load", syscall(SYS_kexec_load, 0, 0, NULL, 0));
    TRY("kexec_file_load", syscall(SYS_kexec_file_load, -1, -1, 0, "", 0));
    /* Without the magic numbers it does nothing even where it is allowed. */
    TRY("reboot", syscall(SYS_reboot, 0, 0, 0, NULL));
    TRY("swapon", swapon("/no/such/file", 0));
    TRY("swapoff", swapoff("/no/such/file"));
    struct timeval now;
    gettimeofday(&now, NULL);
    TRY("settimeofday", settimeofday(&now, NULL));
    struct timespec time;
    clock_gettime(CLOCK_REALTIME, &time);
    TRY("clock_settime", clock_settime(CLOCK_REALTIME, &time));
    struct timex change = {.modes = ADJ_TICK, .tick = 10000};
    TRY("adjtimex", adjtimex(&change));
    TRY("sethostname", sethostname("other", 5));
    TRY("acct", syscall(SYS_acct, "/no/such/file"));
    TRY("quotactl", syscall(SYS_quotactl, 0, "/dev/null", 0, NULL));
    char text[16];
    TRY("syslog", syscall(SYS_syslog, 3, text, sizeof text));
    TRY("add_key", syscall(SYS_add_key, "user", "reach", "x", 1, -3));
    TRY("request_key", syscall(SYS_request_key, "user", "reach", NULL, 0));
    TRY("keyctl", syscall(SYS_keyctl, 0, -3, 1));
#ifdef SYS_iopl
    TRY("iopl", syscall(SYS_iopl, 3));
    TRY("ioperm", syscall(SYS_ioperm, 0x80, 1, 1));
#endif
    TRY("userfaultfd", syscall(SYS_userfaultfd, 0));
    TRY("io_uring_setup", syscall(425, 1, NULL));
    TRY("personality", syscall(SYS_personality, 0x0040000));
    TRY("socket_vsock", socket(40, SOCK_STREAM, 0));
    TRY("socket_alg", socket(38, SOCK_SEQPACKET, 0));
}

static void files(char *devices) {
    /* Opened only: a write that is let through would change the machine. */
    static const char *const writable[] = {
        "/proc/irq/default_smp_affinity",
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/hostname",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/kernel/panic",
        "/proc/sys/net/ipv4/ip_forward",
        "/proc/sys/vm/overcommit_memory",
        "/proc/sysrq-trigger",
        "/sys/kernel/mm/transparent_hugepage/enabled",
        "/sys/kernel/profiling",
        "/sys/kernel/uevent_helper",
        "/sys/power/state",
    };
    for (size_t i = 0; i < sizeof writable / sizeof *writable; i++)
        TRY(writable[i], open(writable[i], O_WRONLY | O_CLOEXEC));
    TRY("cgroup_mkdir", mkdir("/sys/fs/cgroup/reach", 0700));
    TRY("sys_mkdir", mkdir("/sys/kernel/reach", 0700));
    char label[64];
    for (char *device = strtok(devices, ","); device; device = strtok(NULL, ",")) {
        unsigned major = 0, minor = 0;
        sscanf(device, "%u:%u", &major, &minor);
        snprintf(label, sizeof label, "disk_%s", device);
        TRY(label, open_device(S_IFBLK, makedev(major, minor)));
    }
    TRY("dev_mem", open_device(S_IFCHR, makedev(1, 1)));
    TRY("dev_port", open_device(S_IFCHR, makedev(1, 4)));
    TRY("dev_kmsg", open_device(S_IFCHR, makedev(1, 11)));
    TRY("dev_fuse", open_device(S_IFCHR, makedev(10, 229)));
    TRY("dev_loop_control", open_device(S_IFCHR, makedev(10, 237)));
    TRY("dev_kvm", open_device(S_IFCHR, makedev(10, 232)));
}

int main(int count, char **words) {
    if (count != 4)
        return 2;
    setvbuf(stdout, NULL, _IOLBF, 0);
    mkdir("/tmp", 01777);
    processes(atoi(words[1]), strtoull(words[2], NULL, 0));
    namespaces();
    mounts();
    kernel();
    files(words[3]);
    puts("END");
    return 0;
}
