// The server's OpenAI-compatible API, with its failures put into words.

const BUSY = new Set([429, 503]);
const MAX_TRIES = 4;
const MAX_WAIT_SECONDS = 30;

/** A failure whose message is meant for the reader of the page. */
export class Problem extends Error {}

/** Talks to the server that the page came from; the key lives in this object only. */
export class Api {
  key = "";

  /** The JSON of a GET. Throws Problem. */
  async get(path) {
    const response = await this.#fetch(path, {});
    return response.json();
  }

  /**
   * Yields the JSON of each server-sent event of a POST, and returns after "[DONE]".
   * A busy server is asked again when it says so; `onWait(seconds)` is told before each pause.
   * Throws Problem, also for an answer that ends without "[DONE]", or AbortError when `signal` fires.
   */
  async *stream(path, body, { signal, onWait }) {
    const response = await this.#fetchPatiently(path, { method: "POST", body: JSON.stringify(body), signal }, onWait);
    try {
      for await (const data of serverSentEvents(response.body)) {
        if (data === "[DONE]") return;
        const event = JSON.parse(data);
        if (event.error) throw new Problem(`The answer broke off: ${event.error.message}`);
        yield event;
      }
    } catch (error) {
      // A connection that is cut while the body is read.
      if (!(error instanceof TypeError)) throw error;
    }
    throw new Problem("The answer broke off: the connection to the server ended early.");
  }

  async #fetchPatiently(path, options, onWait) {
    for (let attempt = 1; ; attempt++) {
      try {
        return await this.#fetch(path, options);
      } catch (error) {
        if (!error.retryAfter || attempt === MAX_TRIES) throw error;
        onWait(error.retryAfter);
        await pause(error.retryAfter, options.signal);
      }
    }
  }

  async #fetch(path, options) {
    const headers = { "Content-Type": "application/json" };
    if (this.key) headers.Authorization = `Bearer ${this.key}`;
    let response;
    try {
      // Relative, so that the page also works below a path prefix.
      response = await fetch(path, { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Problem("The server cannot be reached. Is it running, and is this machine connected to it?");
    }
    if (response.ok) return response;
    const problem = new Problem(explain(response.status, await serverMessage(response), Boolean(this.key)));
    if (BUSY.has(response.status)) problem.retryAfter = waitSeconds(response.headers.get("Retry-After"));
    throw problem;
  }
}

function explain(status, message, hasKey) {
  if (status === 401 || status === 403) {
    return hasKey
      ? "The server did not accept this API key. Check the key under Access."
      : "The server asks for an API key. Enter it under Access.";
  }
  if (BUSY.has(status)) return "The server is busy. Send again in a moment.";
  if (status === 413) return "The prompt is too long for this server.";
  if (status >= 500) return `The server failed to answer (status ${status}). Send again; if it persists, see the server's log.`;
  return `The server refused the request: ${message || `status ${status}`}`;
}

async function serverMessage(response) {
  try {
    const body = await response.json();
    return String(body.error?.message ?? body.message ?? body.detail ?? "");
  } catch {
    return "";
  }
}

function waitSeconds(header) {
  const seconds = Number.parseFloat(header ?? "");
  return Math.min(Number.isFinite(seconds) ? Math.max(seconds, 1) : 2, MAX_WAIT_SECONDS);
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(new DOMException("stopped", "AbortError"));
    };
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", stop);
      resolve();
    }, seconds * 1000);
    signal.addEventListener("abort", stop, { once: true });
  });
}

async function* serverSentEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) yield line.slice(5).trim();
      }
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}
