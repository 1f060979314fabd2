// The client-server API of the origin that this page came from, as far as it is needed. The token is here, in memory, and
// nowhere else.

const ours = "/_matrix/client/unstable/org.matrix.msc2638";
// A homeserver may live below a path.
const base = location.pathname.slice(0, Math.max(location.pathname.indexOf(ours), 0));
const v3 = "/_matrix/client/v3";

const requestTimeout = 30_000;

// Refusal is an answer other than 2xx.
class Refusal extends Error {
    constructor(status, body, retryAfter) {
        super("HTTP " + status);
        this.status = status;
        this.body = body !== null && typeof body === "object" ? body : {};
        this.errcode = typeof this.body.errcode === "string" ? this.body.errcode : "";
        const ms = this.body.retry_after_ms ?? Number(retryAfter) * 1000;
        this.retryAfterMs = Number.isFinite(ms) && ms > 0 ? ms : 0;
    }

    // What the homeserver says, bounded.
    get said() {
        return foreign(this.body.error, 400);
    }
}

// Unreachable is that no answer came; late if there was none in time.
class Unreachable extends Error {
    constructor(late) {
        super("no answer");
        this.late = late;
    }
}

// session is who is signed in: { token, userId, ending }. ending is an AbortController, aborted when it is over.
let session = null;
let sessionEnded = () => {};

// over stands for a session that has ended: what still runs for it stops at its next request.
const over = { token: "", ending: new AbortController() };
over.ending.abort();
const here = () => session ?? over;
const stopIfOver = () => here().ending.signal.throwIfAborted();

// request asks the homeserver, as who is signed in unless as says otherwise (null for nobody), and returns the answer's JSON.
// It throws a Refusal, or an Unreachable, or, once the session is over, what aborts it.
async function request(method, path, body, { timeout = requestTimeout, as = here() } = {}) {
    as?.ending.signal.throwIfAborted();
    const tooLate = AbortSignal.timeout(timeout);
    const headers = {};
    if (as) headers.Authorization = "Bearer " + as.token;
    if (body !== undefined) headers["Content-Type"] = "application/json";
    let response, parsed;
    try {
        response = await fetch(base + path, {
            method, headers, body: body === undefined ? undefined : JSON.stringify(body),
            signal: as ? AbortSignal.any([tooLate, as.ending.signal]) : tooLate,
            credentials: "omit", cache: "no-store", redirect: "error", referrerPolicy: "no-referrer",
        });
        parsed = await response.json().catch((error) => {
            if (error instanceof SyntaxError) return null;
            throw error;
        });
    } catch {
        as?.ending.signal.throwIfAborted();
        throw new Unreachable(tooLate.aborted);
    }
    if (response.ok && parsed !== null && typeof parsed === "object") return parsed;
    const refusal = new Refusal(response.status, parsed, response.headers.get("Retry-After"));
    if (as && as === session && refusal.status === 401 && ["M_UNKNOWN_TOKEN", "M_MISSING_TOKEN"].includes(refusal.errcode)) {
        endSession();
        sessionEnded();
    }
    throw refusal;
}

async function signInWith(credentials) {
    const answer = await request("POST", v3 + "/login", { ...credentials, initial_device_display_name: strings.deviceName }, { as: null });
    session = { token: answer.access_token, userId: answer.user_id, ending: new AbortController() };
    return session;
}

// endSession forgets the session; what runs for it stops. It returns what was.
function endSession() {
    const was = session;
    session = null;
    was?.ending.abort();
    return was;
}

async function signOutOf(was) {
    await request("POST", v3 + "/logout", {}, { as: { ...was, ending: new AbortController() } });
}

// When the page goes, its session goes with it. Nothing can wait for an answer any more.
addEventListener("pagehide", () => {
    const was = endSession();
    if (!was) return;
    fetch(base + v3 + "/logout", {
        method: "POST", headers: { Authorization: "Bearer " + was.token, "Content-Type": "application/json" }, body: "{}", keepalive: true, credentials: "omit",
    }).catch(() => {});
});

// A page that the browser had put aside has no session any more.
addEventListener("pageshow", (event) => {
    if (event.persisted) location.reload();
});

const refreshPath = (user) => ours + "/user/" + encodeURIComponent(user) + "/devices/refresh";

const noEvents = { types: [] };
// What a /sync is asked for: which rooms are encrypted, later who joins; lists of devices come with every one.
const syncFilter = (types) => JSON.stringify({
    presence: noEvents, account_data: noEvents,
    room: {
        ephemeral: noEvents, account_data: noEvents,
        state: { types, lazy_load_members: true }, timeline: { types, limit: 50, lazy_load_members: true },
    },
});

function syncPath(since, types, timeout) {
    const query = new URLSearchParams({ filter: syncFilter(types), timeout, set_presence: "offline" });
    if (since !== undefined) query.set("since", since);
    return v3 + "/sync?" + query;
}

const pause = (ms, signal) => new Promise((resolve) => {
    const end = () => {
        clearTimeout(timer);
        resolve();
    };
    const timer = setTimeout(end, ms);
    if (signal?.aborted) end();
    signal?.addEventListener("abort", end, { once: true });
});

// inTurn calls f for each of all, a few at a time.
async function inTurn(all, atOnce, f) {
    const left = [...all];
    await Promise.all(Array.from({ length: Math.min(atOnce, left.length) }, async () => {
        while (left.length > 0) await f(left.shift());
    }));
}

function inBatches(all, size) {
    const batches = [];
    for (let i = 0; i < all.length; i += size) batches.push(all.slice(i, i + size));
    return batches;
}

const serverOf = (user) => user.slice(user.indexOf(":") + 1);
