// The default policy of Trusted Types on /docs and /redoc: markup that a viewer writes passes the sanitiser.
// Loaded before the viewers, so that no markup is written without it. Scripts of viewers get no URL and no code.

import DOMPurify from "./vendor/dompurify.js";

// The sanitiser creates its own policy at its first use, which Swagger UI's copy of it would create otherwise.
DOMPurify.sanitize("");
globalThis.trustedTypes?.createPolicy("default", { createHTML: markup => DOMPurify.sanitize(markup) });
