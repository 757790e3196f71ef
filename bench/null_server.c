/* The least a FUSE server can do: no name exists. What it costs is the kernel, libfuse and the change of processes.
 *
 *   gcc -O2 -o null_server null_server.c $(pkg-config --cflags --libs fuse3)
 *   ./null_server TARGET
 */
#define FUSE_USE_VERSION 34
#include <errno.h>
#include <fuse_lowlevel.h>
#include <string.h>
#include <sys/stat.h>

static void lookup(fuse_req_t request, fuse_ino_t parent, const char *name)
{
    (void)parent;
    (void)name;
    fuse_reply_err(request, ENOENT);
}

static void getattr(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *file)
{
    struct stat status;

    (void)file;
    memset(&status, 0, sizeof status);
    status.st_ino = inode;
    status.st_mode = S_IFDIR | 0755;
    status.st_nlink = 2;
    fuse_reply_attr(request, &status, 3600);
}

int main(int count, char **words)
{
    static const struct fuse_lowlevel_ops operations = {.lookup = lookup, .getattr = getattr};
    struct fuse_args arguments = FUSE_ARGS_INIT(1, words);
    struct fuse_session *session;
    int result;

    if (count != 2)
        return 2;
    session = fuse_session_new(&arguments, &operations, sizeof operations, NULL);
    if (session == NULL || fuse_session_mount(session, words[1]) != 0)
        return 1;
    result = fuse_session_loop(session);
    fuse_session_unmount(session);
    fuse_session_destroy(session);
    return result != 0;
}
