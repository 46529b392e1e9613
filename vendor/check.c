/*
 * Compiled by vendor/check.sh and never run: the system's headers first, then ours. Whatever we declare
 * otherwise than they do is a compile error.
 */
#define _GNU_SOURCE
#include <stddef.h>
#include <libzfs_core.h>
#include <sys/nvpair.h>

#define ZFS_BACKUP_CHECK
#include "libnvpair.h"
#include "libzfs_core.h"

/* What our headers leave to the system's when both are there. */
#define SAME(what, value) _Static_assert((long)(what) == (long)(value), #what)
SAME(sizeof(boolean_t), 4);
SAME(sizeof(uint_t), 4);
SAME(B_FALSE, 0);
SAME(B_TRUE, 1);
SAME(sizeof(data_type_t), 4);
SAME(DATA_TYPE_BOOLEAN, 1);
SAME(DATA_TYPE_INT32, 5);
SAME(DATA_TYPE_UINT32, 6);
SAME(DATA_TYPE_INT64, 7);
SAME(DATA_TYPE_UINT64, 8);
SAME(DATA_TYPE_STRING, 9);
SAME(DATA_TYPE_NVLIST, 19);
SAME(DATA_TYPE_BOOLEAN_VALUE, 21);
SAME(NV_UNIQUE_NAME, 1);
SAME(sizeof(enum lzc_dataset_type), 4);
SAME(LZC_DATSET_TYPE_ZFS, 2);
SAME(LZC_DATSET_TYPE_ZVOL, 3);
SAME(sizeof(enum lzc_send_flags), 4);
SAME(LZC_SEND_FLAG_EMBED_DATA, 1);
SAME(LZC_SEND_FLAG_LARGE_BLOCK, 2);
SAME(LZC_SEND_FLAG_COMPRESS, 4);
SAME(LZC_SEND_FLAG_RAW, 8);

#ifdef WITH_SOURCE /* the kernel module's sources, which alone have the layouts */
#include <sys/fs/zfs.h>
#include <sys/dmu.h>
#include <sys/zfs_ioctl.h>
#include <sys/zio.h>

/* Ours beside theirs, under other names. */
#define zfs_cmd our_zfs_cmd
#define dmu_objset_stats our_dmu_objset_stats
#define dmu_replay_record our_dmu_replay_record
#include "zfs_layout.h"
#undef zfs_cmd
#undef dmu_objset_stats
#undef dmu_replay_record

#define SAME_SIZE(type) SAME(sizeof(struct our_##type), sizeof(type##_t))
#define SAME_PLACE(type, ours, theirs) \
	SAME(offsetof(struct our_##type, ours), offsetof(type##_t, theirs)); \
	SAME(sizeof(((struct our_##type *)0)->ours), sizeof(((type##_t *)0)->theirs))

SAME_SIZE(zfs_cmd);
/* COMMAND_BYTES of src/zfs/core.rs: the kernel copies this many bytes at most. */
_Static_assert(sizeof(zfs_cmd_t) <= 64 << 10, "zfs_cmd_t fits into the buffer that the kernel gets");
SAME_PLACE(zfs_cmd, zc_name, zc_name);
SAME_PLACE(zfs_cmd, zc_nvlist_src, zc_nvlist_src);
SAME_PLACE(zfs_cmd, zc_nvlist_src_size, zc_nvlist_src_size);
SAME_PLACE(zfs_cmd, zc_nvlist_dst, zc_nvlist_dst);
SAME_PLACE(zfs_cmd, zc_nvlist_dst_size, zc_nvlist_dst_size);
SAME_PLACE(zfs_cmd, zc_nvlist_dst_filled, zc_nvlist_dst_filled);
SAME_PLACE(zfs_cmd, zc_value, zc_value);
SAME_PLACE(zfs_cmd, zc_cookie, zc_cookie);
SAME_PLACE(zfs_cmd, zc_objset_stats, zc_objset_stats);

SAME_SIZE(dmu_objset_stats);
SAME_PLACE(dmu_objset_stats, dds_num_clones, dds_num_clones);
SAME_PLACE(dmu_objset_stats, dds_creation_txg, dds_creation_txg);
SAME_PLACE(dmu_objset_stats, dds_guid, dds_guid);
SAME_PLACE(dmu_objset_stats, dds_type, dds_type);
SAME_PLACE(dmu_objset_stats, dds_is_snapshot, dds_is_snapshot);
SAME_PLACE(dmu_objset_stats, dds_inconsistent, dds_inconsistent);
SAME_PLACE(dmu_objset_stats, dds_redacted, dds_redacted);
SAME_PLACE(dmu_objset_stats, dds_origin, dds_origin);

SAME_SIZE(dmu_replay_record);
SAME_PLACE(dmu_replay_record, drr_type, drr_type);
SAME_PLACE(dmu_replay_record, drr_payloadlen, drr_payloadlen);
SAME_PLACE(dmu_replay_record, drr_magic, drr_u.drr_begin.drr_magic);
SAME_PLACE(dmu_replay_record, drr_versioninfo, drr_u.drr_begin.drr_versioninfo);
SAME_PLACE(dmu_replay_record, drr_creation_time, drr_u.drr_begin.drr_creation_time);
SAME_PLACE(dmu_replay_record, drr_objset_type, drr_u.drr_begin.drr_type);
SAME_PLACE(dmu_replay_record, drr_flags, drr_u.drr_begin.drr_flags);
SAME_PLACE(dmu_replay_record, drr_toguid, drr_u.drr_begin.drr_toguid);
SAME_PLACE(dmu_replay_record, drr_fromguid, drr_u.drr_begin.drr_fromguid);
SAME_PLACE(dmu_replay_record, drr_toname, drr_u.drr_begin.drr_toname);

SAME(ZFS_BACKUP_OST_ZFS, DMU_OST_ZFS);
SAME(ZFS_BACKUP_OST_ZVOL, DMU_OST_ZVOL);
SAME(ZFS_BACKUP_IOC_POOL_STATS, ZFS_IOC_POOL_STATS);
SAME(ZFS_BACKUP_IOC_OBJSET_STATS, ZFS_IOC_OBJSET_STATS);
SAME(ZFS_BACKUP_IOC_DATASET_LIST_NEXT, ZFS_IOC_DATASET_LIST_NEXT);
SAME(ZFS_BACKUP_IOC_SNAPSHOT_LIST_NEXT, ZFS_IOC_SNAPSHOT_LIST_NEXT);
SAME(ZFS_BACKUP_IOC_SET_PROP, ZFS_IOC_SET_PROP);
SAME(ZFS_BACKUP_IOC_GET_FSACL, ZFS_IOC_GET_FSACL);
SAME(ZFS_BACKUP_IOC_INHERIT_PROP, ZFS_IOC_INHERIT_PROP);

/* Numbers that src/zfs names itself: list.rs and errno.rs. */
SAME(2, ZIO_CRYPT_OFF);
SAME(1, ZFS_KEYSTATUS_UNAVAILABLE);
SAME(1037, ZFS_ERR_UNKNOWN_SEND_STREAM_FEATURE);
SAME(1040, ZFS_ERR_STREAM_TRUNCATED);
#endif
