/** Which errors of a start are the image's own. */
import { isThawError, type ThawError } from "../base/errors.js";

const IMAGE_FAULTS = ["IMAGE_DAMAGED", "IMAGE_MISMATCH", "IMAGE_NOT_READY", "THAW_FAILED"] as const;

/** Whether an error of a start means that the image, not the request, is at fault. */
export function isImageFault(error: unknown): error is ThawError {
  return isThawError(error) && IMAGE_FAULTS.some((code) => code === error.code);
}
