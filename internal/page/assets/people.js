// The people in the encrypted rooms of who is signed in: who they are, their devices, and how their lists stand.

const standingsAtOnce = 500; // what one request may ask about
const keysAtOnce = 100;
const keysPatience = 5_000; // how long the homeserver may wait for other servers

// people are those in the encrypted rooms, by user ID:
//   name, server, local: who they are
//   keys: what /keys/query told, { devices, master, selfSigning, unanswered }, or null while that is not known
//   standing: { fetchedAt, owed: { reason, next, running } }, or null while that is not known; times are this clock's
//   busy, result: what became of the button here; waiting: who waits to hear of them
const people = new Map();
// encrypted are the rooms; unread those whose members could not be had; stale the people whose keys are to be asked for.
const encrypted = new Set(), unread = new Set(), stale = new Set();

function forget() {
    people.clear();
    encrypted.clear();
    unread.clear();
    stale.clear();
}

// roomsIn takes from an answer of /sync which rooms have new members, or have become encrypted.
function roomsIn(answer) {
    const rooms = new Set();
    for (const [room, news] of Object.entries(answer.rooms?.join ?? {})) {
        const events = [...(news.state?.events ?? []), ...(news.timeline?.events ?? [])];
        if (events.some((event) => event.type === "m.room.encryption" && event.state_key === "") && !encrypted.has(room)) {
            encrypted.add(room);
            rooms.add(room);
        }
        const joins = events.some((event) => event.type === "m.room.member" && event.content?.membership === "join" && !people.has(event.state_key));
        if (encrypted.has(room) && (joins || news.timeline?.limited)) rooms.add(room);
    }
    return rooms;
}

// meet adds the members of these rooms, and returns those who are new.
async function meet(rooms) {
    const fresh = [];
    await inTurn(rooms, 4, async (room) => {
        try {
            const answer = await request("GET", v3 + "/rooms/" + encodeURIComponent(room) + "/joined_members");
            stopIfOver();
            unread.delete(room);
            for (const [id, member] of Object.entries(answer.joined ?? {})) {
                if (id === here().userId || !/^@.+:.+$/s.test(id)) continue;
                const name = foreign(member?.display_name);
                const known = people.get(id);
                if (known) {
                    known.name ||= name;
                    continue;
                }
                const local = serverOf(id) === serverOf(here().userId);
                const person = { id, name, server: foreign(serverOf(id), 255), local, keys: null, standing: null, busy: false, result: null, waiting: new Set() };
                people.set(id, person);
                fresh.push(person);
            }
        } catch (error) {
            stopIfOver();
            if (error instanceof Refusal && [403, 404].includes(error.status)) encrypted.delete(room); // left meanwhile
            else unread.add(room);
        }
    });
    return fresh;
}

// learnStandings asks when these people's lists were last fetched, and what is owed.
async function learnStandings(persons) {
    for (const batch of inBatches(persons, standingsAtOnce)) {
        const answer = await request("POST", ours + "/standing", { users: batch.map((person) => person.id) });
        const now = Date.now();
        for (const person of batch) {
            const told = own(answer.users, person.id) ?? {};
            person.standing = {
                fetchedAt: told.fetched_ago_ms === undefined ? null : now - told.fetched_ago_ms,
                owed: told.owed ? { reason: told.owed.reason, running: Boolean(told.owed.running), next: now + (told.owed.retry_after_ms ?? 0) } : null,
            };
        }
    }
}

// learnKeys asks for the keys of these people. Whom it cannot ask about stays as they are, and is stale; it says whether there
// is no such.
async function learnKeys(persons) {
    let whole = true;
    await inTurn(inBatches(persons, keysAtOnce), 3, async (batch) => {
        batch.forEach((person) => stale.delete(person.id)); // what is announced from now on is news again
        const asked = Object.fromEntries(batch.map((person) => [person.id, []]));
        let answer;
        try {
            answer = await request("POST", v3 + "/keys/query", { device_keys: asked, timeout: keysPatience });
        } catch {
            stopIfOver();
            batch.forEach((person) => stale.add(person.id));
            whole = false;
            return;
        }
        for (const person of batch) {
            const devices = own(answer.device_keys, person.id), master = own(answer.master_keys, person.id);
            const unanswered = Boolean(own(answer.failures, serverOf(person.id)));
            if (unanswered && !isObject(devices) && person.keys) {
                person.keys.unanswered = true;
                continue;
            }
            person.keys = { devices: isObject(devices) ? devices : {}, master, selfSigning: own(answer.self_signing_keys, person.id), unanswered };
        }
    });
    return whole;
}

// likelyStale is the more, the more likely it is that somebody's list is old.
function likelyStale(person) {
    let score = 0;
    if (person.standing?.owed) score += 8;
    if (person.local) return score; // their list is the homeserver's own
    if (person.keys?.unanswered) score += 4;
    if (person.keys && !isObject(person.keys.master)) score += 2;
    if (person.standing && person.standing.fetchedAt === null) score += 1;
    return score;
}

const called = (person) => person.name || person.id;
const byName = new Intl.Collator(undefined, { numeric: true });

function inOrder() {
    return [...people.values()].sort((a, b) => likelyStale(b) - likelyStale(a) || a.local - b.local ||
        byName.compare(called(a), called(b)) || (a.id < b.id ? -1 : 1));
}

// essence is what a list says, without what homeservers add.
function essence(user, object) {
    if (!isObject(object)) return "";
    return signedPart(object) + canonical(own(object.signatures, user) ?? {}) + foreign(own(object.unsigned, "device_display_name"));
}

// difference is what became of a list: { added, removed, altered }.
function difference(user, before, after) {
    const old = before.devices, now = after.devices;
    const same = (name) => essence(user, old[name]) === essence(user, now[name]);
    return {
        added: Object.keys(now).filter((id) => !Object.hasOwn(old, id)).length,
        removed: Object.keys(old).filter((id) => !Object.hasOwn(now, id)).length,
        altered: essence(user, before.master) !== essence(user, after.master) || essence(user, before.selfSigning) !== essence(user, after.selfSigning) ||
            Object.keys(now).some((id) => Object.hasOwn(old, id) && !same(id)),
    };
}
