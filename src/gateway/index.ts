/** The door of the gateway. */
export type { FunctionView, ImageView, MetricsView, ServerView } from "./control.js";
export { WARM_UP_BYTES_MAX } from "./deploy-body.js";
export { isLoopback } from "./guard.js";
export { type Gateway, openGateway } from "./server.js";
