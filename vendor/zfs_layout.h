/*
 * The two structures that cross the kernel's border without a library in between, as far as zfs-backup uses
 * them: the argument of the listing ioctls on /dev/zfs, and the first record of a send stream.
 *
 * Written for this project: fields that are not used are one run of bytes named reservedN. vendor/check.sh compares
 * every other field, every request and every constant with the sources of each series in src/zfs/version.rs, on
 * 64-bit Linux.
 */
#ifndef ZFS_BACKUP_ZFS_LAYOUT_H
#define ZFS_BACKUP_ZFS_LAYOUT_H

#include <stdint.h>

/* dds_type */
enum { ZFS_BACKUP_OST_ZFS = 2, ZFS_BACKUP_OST_ZVOL = 3 };

struct dmu_objset_stats {
	uint64_t dds_num_clones;
	uint64_t dds_creation_txg;
	uint64_t dds_guid;
	uint32_t dds_type;
	uint8_t dds_is_snapshot;
	uint8_t dds_inconsistent;
	uint8_t dds_redacted;
	uint8_t dds_origin[256]; /* ends with a zero; empty for what is no clone */
	uint8_t reserved1;
};

struct zfs_cmd {
	uint8_t zc_name[4096]; /* in: the dataset; out of the two list calls: the next name */
	uint64_t zc_nvlist_src; /* address of the packed properties to set */
	uint64_t zc_nvlist_src_size;
	uint64_t zc_nvlist_dst; /* address of the buffer for the properties */
	uint64_t zc_nvlist_dst_size; /* in: its size; out: the size needed */
	uint32_t zc_nvlist_dst_filled;
	uint8_t reserved1[12];
	uint8_t zc_value[8192]; /* the property to inherit */
	uint8_t reserved4[280];
	uint64_t zc_cookie; /* the cursor; 0 for the first */
	uint8_t reserved2[80];
	struct dmu_objset_stats zc_objset_stats;
	uint8_t reserved3[752];
};

/* Requests of the ioctl, on Linux. */
enum {
	ZFS_BACKUP_IOC_POOL_STATS = 0x5a05,
	ZFS_BACKUP_IOC_OBJSET_STATS = 0x5a12,
	ZFS_BACKUP_IOC_DATASET_LIST_NEXT = 0x5a14,
	ZFS_BACKUP_IOC_SNAPSHOT_LIST_NEXT = 0x5a15,
	ZFS_BACKUP_IOC_SET_PROP = 0x5a16,
	ZFS_BACKUP_IOC_GET_FSACL = 0x5a29,
	ZFS_BACKUP_IOC_INHERIT_PROP = 0x5a2b
};

/* A BEGIN record: 312 bytes in the sender's byte order. All others are parsed in src/stream/record.rs. */
struct dmu_replay_record {
	uint32_t drr_type;
	uint32_t drr_payloadlen;
	uint64_t drr_magic;
	uint64_t drr_versioninfo;
	uint64_t drr_creation_time;
	uint32_t drr_objset_type;
	uint32_t drr_flags;
	uint64_t drr_toguid;
	uint64_t drr_fromguid;
	uint8_t drr_toname[256];
};

#endif
