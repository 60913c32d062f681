/* Records what a process does to the files below RECORD_FOLDER, in its order and with the data, in
   the file RECORD_JOURNAL. For LD_PRELOAD. Nothing is really synced: the journal says what would
   be. After record_kill_before(n) the process is killed before its n-th sync.

   Left out are files of shared memory (-shm), which SQLite makes anew after a crash. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define DESCRIPTORS 4096
#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

enum kind { WRITE = 1, TRUNCATE, SYNC, CREATE, UNLINK, RENAME, MKDIR };

/* followed by the path and the data; reading.py has the same */
struct header {
  uint32_t kind, path_length;
  uint64_t inode, offset, data_length;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t inodes[DESCRIPTORS]; /* by descriptor; 0 = not one of ours */
static const char *folder;
static int journal = -1;
static long syncs, kill_at;

__attribute__((constructor)) static void begin(void) {
  folder = getenv("RECORD_FOLDER");
  const char *path = getenv("RECORD_JOURNAL");
  if (folder == NULL || path == NULL) abort();
  journal = REAL(open)(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
  if (journal < 0) abort();
}

void record_kill_before(long sync) { kill_at = sync; }

static int is_ours(const char *path) {
  size_t length = strlen(path);
  return folder != NULL && strncmp(path, folder, strlen(folder)) == 0 &&
         (length < 4 || strcmp(path + length - 4, "-shm") != 0);
}

static uint64_t inode_of(int descriptor) {
  return descriptor >= 0 && descriptor < DESCRIPTORS ? inodes[descriptor] : 0;
}

static void enter(void) { pthread_mutex_lock(&lock); }

static void leave(void) { pthread_mutex_unlock(&lock); }

static void record(enum kind kind, const char *path, uint64_t inode, uint64_t offset,
                   const void *data, size_t length) {
  struct header header = {kind, strlen(path), inode, offset, length};
  struct iovec parts[] = {{&header, sizeof header},
                          {(void *)path, header.path_length},
                          {(void *)data, data == NULL ? 0 : length}};
  ssize_t size = sizeof header + header.path_length + parts[2].iov_len;
  if (REAL(writev)(journal, parts, 3) != size) abort();
}

static int opened(const char *name, const char *path, int flags, mode_t mode) {
  int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, name);
  if (!is_ours(path)) return real(path, flags, mode);
  enter();
  int is_new = access(path, F_OK) != 0;
  int descriptor = real(path, flags, mode);
  struct stat found;
  if (descriptor >= DESCRIPTORS) abort();
  if (descriptor >= 0 && fstat(descriptor, &found) == 0) {
    inodes[descriptor] = found.st_ino;
    if (is_new) record(CREATE, path, found.st_ino, 0, NULL, 0);
    else if (flags & O_TRUNC) record(TRUNCATE, "", found.st_ino, 0, NULL, 0);
  }
  leave();
  return descriptor;
}

#define OPENED(name)                                                   \
  int name(const char *path, int flags, ...) {                         \
    va_list rest;                                                      \
    va_start(rest, flags);                                             \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, int) : 0; \
    va_end(rest);                                                      \
    return opened(#name, path, flags, mode);                           \
  }
OPENED(open)
OPENED(open64)

int close(int descriptor) {
  if (inode_of(descriptor)) inodes[descriptor] = 0;
  return REAL(close)(descriptor);
}

#define POSITIONED(name, type)                                               \
  ssize_t name(int descriptor, const void *data, size_t length, type offset) { \
    uint64_t inode = inode_of(descriptor);                                   \
    if (!inode) return REAL(name)(descriptor, data, length, offset);         \
    enter();                                                                 \
    ssize_t written = REAL(name)(descriptor, data, length, offset);          \
    if (written > 0) record(WRITE, "", inode, offset, data, written);        \
    leave();                                                                 \
    return written;                                                          \
  }
POSITIONED(pwrite, off_t)
POSITIONED(pwrite64, off64_t)

ssize_t write(int descriptor, const void *data, size_t length) {
  uint64_t inode = inode_of(descriptor);
  if (!inode) return REAL(write)(descriptor, data, length);
  enter();
  ssize_t written = REAL(write)(descriptor, data, length);
  if (written > 0) {
    off_t end = lseek(descriptor, 0, SEEK_CUR);
    record(WRITE, "", inode, end - written, data, written);
  }
  leave();
  return written;
}

/* what no store uses, so that nothing happens unseen */
#define UNSEEN(declaration, name, descriptor, arguments)  \
  declaration {                                           \
    if (inode_of(descriptor)) abort();                    \
    return REAL(name) arguments;                          \
  }
UNSEEN(ssize_t writev(int fd, const struct iovec *v, int n), writev, fd, (fd, v, n))
UNSEEN(ssize_t pwritev(int fd, const struct iovec *v, int n, off_t o), pwritev, fd, (fd, v, n, o))
UNSEEN(int fallocate(int fd, int m, off_t o, off_t n), fallocate, fd, (fd, m, o, n))
UNSEEN(int posix_fallocate(int fd, off_t o, off_t n), posix_fallocate, fd, (fd, o, n))

#define TRUNCATED(name, type)                                    \
  int name(int descriptor, type size) {                          \
    uint64_t inode = inode_of(descriptor);                       \
    if (!inode) return REAL(name)(descriptor, size);             \
    enter();                                                     \
    int failed = REAL(name)(descriptor, size);                   \
    if (!failed) record(TRUNCATE, "", inode, size, NULL, 0);     \
    leave();                                                     \
    return failed;                                               \
  }
TRUNCATED(ftruncate, off_t)
TRUNCATED(ftruncate64, off64_t)

#define SYNCED(name)                                             \
  int name(int descriptor) {                                     \
    uint64_t inode = inode_of(descriptor);                       \
    if (!inode) return REAL(name)(descriptor);                   \
    enter();                                                     \
    if (++syncs == kill_at) kill(getpid(), SIGKILL);             \
    record(SYNC, "", inode, 0, NULL, 0);                         \
    leave();                                                     \
    return 0;                                                    \
  }
SYNCED(fsync)
SYNCED(fdatasync)

int unlink(const char *path) {
  if (!is_ours(path)) return REAL(unlink)(path);
  enter();
  int failed = REAL(unlink)(path);
  if (!failed) record(UNLINK, path, 0, 0, NULL, 0);
  leave();
  return failed;
}

int rename(const char *from, const char *to) {
  if (!is_ours(from) && !is_ours(to)) return REAL(rename)(from, to);
  enter();
  int failed = REAL(rename)(from, to);
  if (!failed) record(RENAME, from, 0, 0, to, strlen(to));
  leave();
  return failed;
}

int mkdir(const char *path, mode_t mode) {
  if (!is_ours(path)) return REAL(mkdir)(path, mode);
  enter();
  int failed = REAL(mkdir)(path, mode);
  struct stat made;
  if (!failed && stat(path, &made) == 0) record(MKDIR, path, made.st_ino, 0, NULL, 0);
  leave();
  return failed;
}
