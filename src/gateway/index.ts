/** The door of the gateway. */
export {
  CONTROL_PREFIX,
  type FunctionView,
  type ImageView,
  type LastStart,
  type MetricsView,
  type ServerView,
} from "./control.js";
export { WARM_UP_BYTES_MAX } from "./deploy-body.js";
export { EXCEPTION_OF, EXCEPTIONS } from "./errors.js";
export { isLoopback } from "./guard.js";
export { buildGateway, type Gateway, type GatewayOptions, openGateway } from "./server.js";
export { startHeader, type TraceHeader, traceHeader } from "./start-header.js";
