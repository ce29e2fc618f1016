/** Of linux/userfaultfd.h, by hand: headers may be older than the kernel. See ioctl_userfaultfd(2). */

/** Makes a userfaultfd from an open /dev/userfaultfd; its argument are flags. */
export const USERFAULTFD_IOC_NEW = 0xaa00;
/** Takes {@link uffdApi}. */
export const UFFDIO_API = 0xc018aa3f;
/** Takes {@link uffdRegister}. */
export const UFFDIO_REGISTER = 0xc020aa00;
/** Handles no faults of the kernel: needs no privilege. */
export const UFFD_USER_MODE_ONLY = 1;

const UFFD_API = 0xaan;
/** Linux 6.4: write protection covers pages that are not there yet. */
const UFFD_FEATURE_WP_UNPOPULATED = 1n << 13n;
/** Linux 6.7: a write to a protected page is let go at once, so nobody need serve it; any kind of mapping can be registered. */
const UFFD_FEATURE_WP_ASYNC = 1n << 15n;
const UFFDIO_REGISTER_MODE_WP = 2n;

/** struct uffdio_api, asking for asynchronous write protection. */
export function uffdApi(): Buffer {
  const bytes = Buffer.alloc(24);
  bytes.writeBigUInt64LE(UFFD_API, 0);
  bytes.writeBigUInt64LE(UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_ASYNC, 8);
  return bytes;
}

/** struct uffdio_register for write protection of [start, end). */
export function uffdRegister(start: bigint, end: bigint): Buffer {
  const bytes = Buffer.alloc(32);
  bytes.writeBigUInt64LE(start, 0);
  bytes.writeBigUInt64LE(end - start, 8);
  bytes.writeBigUInt64LE(UFFDIO_REGISTER_MODE_WP, 16);
  return bytes;
}
