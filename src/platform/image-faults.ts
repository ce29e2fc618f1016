/** Which errors are the image's own, and which have to do with the moment. */
import { isThawError, type ThawError } from "../base/errors.js";

const IMAGE_FAULTS = ["IMAGE_DAMAGED", "IMAGE_MISMATCH", "IMAGE_NOT_READY", "THAW_FAILED"] as const;

/** Whether an error of a start means that the image, not the request, is at fault. */
export function isImageFault(error: unknown): error is ThawError {
  return isThawError(error) && IMAGE_FAULTS.some((code) => code === error.code);
}

/** What they were caused by decides. */
const WRAPPERS = ["INIT_FAILED", "WARM_UP_FAILED"] as const;
const SIGKILL = 9;

/**
 * Whether the failure may have to do with the moment: of a freeze, of a process that somebody killed, such as a kernel that has no memory
 * left, of a database that another program holds, or of an image that was damaged before it was recorded, its base's pages among it.
 */
export function isOfTheMoment(error: unknown): boolean {
  const reason = isThawError(error) && WRAPPERS.some((code) => code === error.code) ? error.cause : error;
  if (isThawError(reason, "INSTANCE_EXITED")) return reason.details.signal === SIGKILL;
  if (isImageFault(reason)) return true;
  return (["FREEZE_FAILED", "SANDBOX_FAILED", "DATABASE_FAILED"] as const).some((code) => isThawError(reason, code));
}
