// Errors in words that help.

import { element, icon } from "./dom.js";

// By the server's reason, then by its status.
const BY_CODE = {
  NETWORK: ["error_network", "error_network_help"],
  STREAM_BROKEN: ["error_broken", "error_broken_help"],
  NOT_OPERATOR: ["error_role"],
};
const BY_STATUS = {
  401: ["error_key"],
  403: ["error_role"],
  408: ["error_deadline"],
  413: ["error_large"],
  429: ["error_busy"],
  502: ["error_gateway", "error_gateway_help"],
  503: ["error_gateway", "error_gateway_help"],
  504: ["error_deadline"],
};

/** Describe an error: a headline, help, the server's own words and the request id. Buttons come last. */
export function failure(error, ...buttons) {
  const [headline, help] =
    BY_CODE[error.code] ?? BY_STATUS[error.status] ?? (error.status < 500 ? ["error_request"] : ["error_server"]);
  return element(
    "div",
    { class: "failure", role: "alert" },
    icon("warn"),
    element(
      "div",
      {},
      element("strong", { t: headline }),
      help ? element("p", { t: help }) : null,
      error.retryAfterS ? element("p", { t: "retry_after", v: { n: Math.ceil(error.retryAfterS) } }) : null,
      error.detail ? element("p", { class: "muted" }, error.detail) : null,
      error.requestId ? element("p", { class: "muted", t: "request_was", v: { id: error.requestId } }) : null,
      buttons.length ? element("div", { class: "failure-actions" }, ...buttons) : null,
    ),
  );
}
