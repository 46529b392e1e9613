/*
 * The part of libzfs_core.so.3 that zfs-backup calls, declared for bindgen (see build.rs).
 *
 * Written for this project from the interface alone. vendor/check.sh compiles every declaration with the
 * headers of each series in src/zfs/version.rs. Every int that is returned is 0 or a positive error number.
 */
#ifndef ZFS_BACKUP_LIBZFS_CORE_H
#define ZFS_BACKUP_LIBZFS_CORE_H

#include "libnvpair.h"

struct dmu_replay_record;

#ifndef ZFS_BACKUP_CHECK
enum lzc_dataset_type { LZC_DATSET_TYPE_ZFS = 2, LZC_DATSET_TYPE_ZVOL = 3 };

/* A set of bits, not one of these. */
enum lzc_send_flags {
	LZC_SEND_FLAG_EMBED_DATA = 1,
	LZC_SEND_FLAG_LARGE_BLOCK = 2,
	LZC_SEND_FLAG_COMPRESS = 4,
	LZC_SEND_FLAG_RAW = 8
};
#endif

int libzfs_core_init(void);

int lzc_create(const char *name, enum lzc_dataset_type type, nvlist_t *properties, uint8_t *key, uint_t key_bytes);
int lzc_destroy(const char *name);
int lzc_rollback_to(const char *filesystem, const char *snapshot);

int lzc_sync(const char *pool, nvlist_t *arguments, nvlist_t **results);

int lzc_snapshot(nvlist_t *snapshots, nvlist_t *properties, nvlist_t **errors);
int lzc_destroy_snaps(nvlist_t *snapshots, boolean_t deferred, nvlist_t **errors);

int lzc_hold(nvlist_t *holds, int cleanup_fd, nvlist_t **errors);
int lzc_release(nvlist_t *holds, nvlist_t **errors);
int lzc_get_holds(const char *snapshot, nvlist_t **holds);

int lzc_bookmark(nvlist_t *bookmarks, nvlist_t **errors);
int lzc_get_bookmarks(const char *filesystem, nvlist_t *properties, nvlist_t **bookmarks);
int lzc_destroy_bookmarks(nvlist_t *bookmarks, nvlist_t **errors);

int lzc_send(const char *snapshot, const char *from, int fd, enum lzc_send_flags flags);
int lzc_send_resume(const char *snapshot, const char *from, int fd, enum lzc_send_flags flags, uint64_t object,
    uint64_t offset);
int lzc_send_space(const char *snapshot, const char *from, enum lzc_send_flags flags, uint64_t *bytes);

int lzc_receive_with_cmdprops(const char *snapshot, nvlist_t *received_properties, nvlist_t *local_properties,
    uint8_t *key, uint_t key_bytes, const char *origin, boolean_t force, boolean_t resumable, boolean_t raw, int fd,
    const struct dmu_replay_record *begin, int cleanup_fd, uint64_t *read_bytes, uint64_t *error_flags,
    uint64_t *action_handle, nvlist_t **errors);

#endif
