/* Loaded into a daemon by LD_PRELOAD: a disk on which every flush takes as many milliseconds longer as are
 * written in the file DISK_DELAY_FILE. For each flush a byte is added to the file beside it that ends in
 * `.count`. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static void wait_for_disk(void) {
    const char *path = getenv("DISK_DELAY_FILE");
    if (!path)
        return;
    char text[32] = {0};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    long delay = fd >= 0 && read(fd, text, sizeof text - 1) > 0 ? atol(text) : 0;
    if (fd >= 0)
        close(fd);
    struct timespec left = {delay / 1000, delay % 1000 * 1000000};
    while (delay > 0 && nanosleep(&left, &left) != 0)
        ;
    char count[4096];
    snprintf(count, sizeof count, "%s.count", path);
    fd = open(count, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd >= 0) {
        if (write(fd, ".", 1) != 1)
            abort();
        close(fd);
    }
}

int fsync(int fd) {
    wait_for_disk();
    return (int)syscall(SYS_fsync, fd);
}

int fdatasync(int fd) {
    wait_for_disk();
    return (int)syscall(SYS_fdatasync, fd);
}
