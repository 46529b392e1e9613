/*
 * The part of libnvpair.so.3 that zfs-backup calls, declared for bindgen (see build.rs).
 *
 * Written for this project from the interface alone. vendor/check.sh compiles every declaration with the
 * headers of each series in src/zfs/version.rs.
 *
 * Two macros are for that check only:
 *   ZFS_BACKUP_CHECK   the system's headers came first, so they give the enumerations
 *   NV_CONST           `const` where 2.2 and later say so; 2.1 does not (no difference in the binary)
 */
#ifndef ZFS_BACKUP_LIBNVPAIR_H
#define ZFS_BACKUP_LIBNVPAIR_H

#include <stddef.h>
#include <stdint.h>

#ifndef NV_CONST
#define NV_CONST const
#endif

typedef struct nvlist nvlist_t;
typedef struct nvpair nvpair_t;

#ifndef ZFS_BACKUP_CHECK
typedef unsigned int uint_t;
typedef enum { B_FALSE = 0, B_TRUE = 1 } boolean_t;

/* Only the kinds that we make or read. A value of another kind is not an error: it is passed over. */
typedef enum {
	DATA_TYPE_BOOLEAN = 1,
	DATA_TYPE_INT32 = 5,
	DATA_TYPE_UINT32 = 6,
	DATA_TYPE_INT64 = 7,
	DATA_TYPE_UINT64 = 8,
	DATA_TYPE_STRING = 9,
	DATA_TYPE_NVLIST = 19,
	DATA_TYPE_BOOLEAN_VALUE = 21
} data_type_t;

/* nvlist_alloc: a name occurs once, the last value wins. */
enum { NV_UNIQUE_NAME = 1 };
#endif

int nvlist_alloc(nvlist_t **list, uint_t flags, int kmflag);
void nvlist_free(nvlist_t *list);
int nvlist_unpack(char *packed, size_t packed_bytes, nvlist_t **list, int kmflag);

int nvlist_add_boolean(nvlist_t *list, const char *name);
int nvlist_add_boolean_value(nvlist_t *list, const char *name, boolean_t value);
int nvlist_add_uint64(nvlist_t *list, const char *name, uint64_t value);
int nvlist_add_string(nvlist_t *list, const char *name, const char *value);
int nvlist_add_nvlist(nvlist_t *list, const char *name, NV_CONST nvlist_t *value);

nvpair_t *nvlist_next_nvpair(nvlist_t *list, NV_CONST nvpair_t *previous);
NV_CONST char *nvpair_name(NV_CONST nvpair_t *pair);
data_type_t nvpair_type(NV_CONST nvpair_t *pair);
int nvpair_value_boolean_value(NV_CONST nvpair_t *pair, boolean_t *value);
int nvpair_value_int32(NV_CONST nvpair_t *pair, int32_t *value);
int nvpair_value_uint32(NV_CONST nvpair_t *pair, uint32_t *value);
int nvpair_value_int64(NV_CONST nvpair_t *pair, int64_t *value);
int nvpair_value_uint64(NV_CONST nvpair_t *pair, uint64_t *value);
int nvpair_value_string(NV_CONST nvpair_t *pair, NV_CONST char **value);
int nvpair_value_nvlist(nvpair_t *pair, nvlist_t **value);

#endif
