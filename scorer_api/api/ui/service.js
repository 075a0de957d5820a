// Asking the service, with the token that the user gave. Paths are relative: the page may stand below a prefix.
const KEY = "kv-indexer-token";
const GET_TIMEOUT_MS = 10_000;
// Engines may have to be asked for tokens first.
const POST_TIMEOUT_MS = 60_000;

export const token = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

/** The service answered with a problem, or, with status 0, not at all. */
export class Refusal extends Error {
  constructor(status, title, detail) {
    super(detail ? `${title}: ${detail}` : title);
    this.status = status;
    this.detail = detail;
  }
}

/** The decoded answer. `body`: what to POST. Throws Refusal, and AbortError where `signal` says stop. */
export const ask = (path, body, signal) => asked(path, "application/json", (response) => response.json(), body, signal);

/** The answer as text. Throws Refusal. */
export const askText = (path) => asked(path, "text/plain", (response) => (response.ok ? response.text() : response.json()));

async function asked(path, accept, read, body, signal) {
  const headers = { Accept: accept };
  const used = token.get();
  if (used) headers.Authorization = `Bearer ${used}`;
  if (body) headers["Content-Type"] = "application/json";
  const timeout = body ? POST_TIMEOUT_MS : GET_TIMEOUT_MS;
  const limit = AbortSignal.timeout(timeout);
  const options = { headers, method: body ? "POST" : "GET", body: body && JSON.stringify(body), cache: "no-store", redirect: "error", credentials: "same-origin" };
  let response, answer;
  try {
    response = await fetch(path, { ...options, signal: signal ? AbortSignal.any([signal, limit]) : limit });
    answer = await read(response).catch((error) => {
      if (error instanceof SyntaxError) return null;
      throw error;
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Refusal(0, limit.aborted ? `The service did not answer within ${timeout / 1000} s` : "The service cannot be reached", "");
  }
  if (response.ok && answer !== null) return answer;
  if (response.ok) throw new Refusal(0, "What answers here is not the service", "");
  if (response.status === 401 && token.get() === used) token.forget();
  throw new Refusal(response.status, `${response.status} ${answer?.title ?? response.statusText}`, String(answer?.detail ?? ""));
}
