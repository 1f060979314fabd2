// What is going on while somebody is signed in: the list, the button, and what /sync brings.

// begin goes on until the session is over, which ends whatever is under way by an exception that nobody needs to hear of.
function begin() {
    const mine = session;
    say($("who"), "signedInAs", { user: foreign(mine.userId, 255) });
    onlyShow("room");
    during(mine, () => load(mine));
}

async function during(mine, work) {
    try {
        await work();
    } catch (error) {
        if (!mine.ending.signal.aborted) throw error;
    }
}

const mostPatience = 8_000; // how long the list waits for the devices of everybody

async function load(mine) {
    for (const id of ["trouble", "unseen-rooms", "connection"]) notice(id);
    for (const id of ["load-again", "search", "summary", "more"]) $(id).hidden = true;
    notice("loading", "loading");
    let since;
    try {
        const answer = await request("GET", syncPath(undefined, ["m.room.encryption"], 0), undefined, { timeout: 120_000 });
        since = answer.next_batch;
        await meet(roomsIn(answer));
    } catch (error) {
        mine.ending.signal.throwIfAborted();
        notice("loading");
        notice("trouble", ...troubleOf(error));
        $("load-again").hidden = false;
        return;
    }
    const everybody = [...people.values()];
    notice("loading", "loadingDevices", { count: t("persons", { n: everybody.length }) });
    const devices = learnKeys(everybody);
    devices.catch(() => {}); // it is awaited below, unless something else fails first
    await learnStandings(everybody).catch((error) => {
        mine.ending.signal.throwIfAborted();
        const said = error instanceof Refusal ? error.said : "";
        notice("trouble", "noStandings", { error: said || t("unreachable") });
    });
    await Promise.race([devices, pause(mostPatience, mine.ending.signal)]);
    mine.ending.signal.throwIfAborted();
    notice("loading");
    showUnread();
    ordered = inOrder();
    showList();
    lookAgain(mine);
    devices.then(() => everybody.forEach(show)).catch(() => {});
    await follow(mine, since);
}

function showUnread() {
    if (unread.size > 0) notice("unseen-rooms", "someRooms", { n: unread.size });
    else notice("unseen-rooms");
}

$("load-again").addEventListener("click", () => during(session, () => load(session)));
$("find").addEventListener("input", () => {
    limit = pageOf;
    showList();
});
$("more").addEventListener("click", () => {
    const next = $("list").children.length;
    limit += pageOf;
    showList();
    $("list").children[next]?.querySelector("button").focus();
});

const pollFor = 30_000;

// follow asks for what is new, again and again. While nothing answers it asks more and more seldom, and at once when the
// device is online again.
async function follow(mine, since) {
    for (let failures = 0; !mine.ending.signal.aborted;) {
        try {
            const types = ["m.room.encryption", "m.room.member"], asked = Date.now();
            const answer = await request("GET", syncPath(since, types, failures > 0 ? 0 : pollFor), undefined, { timeout: pollFor + 60_000 });
            // A homeserver whose token stands still answers at once, again and again.
            if (answer.next_batch === since && Date.now() - asked < 1_000) await pause(1_000, mine.ending.signal);
            since = answer.next_batch ?? since;
            if (failures > 0) notice("connection");
            failures = 0;
            for (const user of answer.device_lists?.changed ?? []) {
                if (people.has(user)) stale.add(user);
            }
            const rooms = new Set([...roomsIn(answer), ...unread]);
            if (rooms.size > 0) await welcome(await meet(rooms));
            showUnread();
            if (stale.size > 0) await hear(mine);
        } catch (error) {
            mine.ending.signal.throwIfAborted();
            if (!(error instanceof Unreachable || error instanceof Refusal)) throw error;
            failures++;
            notice("connection", "offline");
            const online = new Promise((resolve) => addEventListener("online", resolve, { once: true }));
            await Promise.race([online, pause(Math.min(1000 * 2 ** Math.min(failures - 1, 5), pollFor) * (0.75 + Math.random() / 2), mine.ending.signal)]);
        }
    }
}

// welcome adds people who have come since the list was made, at its end.
async function welcome(persons) {
    if (persons.length === 0) return;
    await Promise.all([learnKeys(persons), learnStandings(persons).catch(() => {})]);
    ordered = [...ordered, ...persons];
    showList();
}

// hear asks for the keys of those of whom there is news, tells who waits for it, and says where a debt was paid.
async function hear(mine) {
    const persons = [...stale].map((id) => people.get(id)).filter(Boolean);
    const whole = await learnKeys(persons);
    await learnAgain(mine, persons);
    for (const person of persons) {
        if (stale.has(person.id)) continue;
        for (const resolve of person.waiting) resolve();
        person.waiting.clear();
        show(person);
    }
    // What could not be asked for is asked for again with the next answer, which is not waited for long.
    if (!whole) throw new Unreachable(false);
}

// learnAgain asks how these people's lists stand now. Somebody who was owed and is not any more has been paid.
async function learnAgain(mine, persons) {
    const owed = persons.filter((person) => person.standing?.owed);
    const fetched = new Map(owed.map((person) => [person, person.standing.fetchedAt ?? 0]));
    try {
        await learnStandings(persons);
    } catch {
        mine.ending.signal.throwIfAborted();
        return;
    }
    for (const person of owed) {
        const { standing } = person;
        // Clocks of both sides round; a fetch that is no newer means that it was given up.
        if (!standing.owed && (standing.fetchedAt ?? 0) > fetched.get(person) + 1000 && !person.busy) {
            person.result = { kind: "good", said: [["paid", { server: person.server }]] };
            announce(person);
        } else if (!standing.owed && !person.busy) {
            person.result = null;
        }
    }
    persons.forEach(show);
    lookAgain(mine);
}

let looking;

const withoutStanding = () => [...people.values()].filter((person) => person.standing === null);

// learnMissing asks how the lists stand of those of whom that could not be told yet.
async function learnMissing() {
    const missing = withoutStanding();
    if (missing.length > 0) await learnStandings(missing);
    notice("trouble");
    missing.forEach(show);
}

const noStandingFor = 30_000; // until it is asked again how lists stand, where that could not be told

// lookAgain looks, a little after something that is owed was to be tried, what came of it: a failure is announced by nobody.
function lookAgain(mine) {
    clearTimeout(looking);
    const owed = [...people.values()].filter((person) => person.standing?.owed);
    const times = owed.map((person) => (person.standing.owed.running ? Date.now() : person.standing.owed.next) + 2_000);
    if (withoutStanding().length > 0) times.push(Date.now() + noStandingFor);
    if (times.length === 0) return;
    const wait = Math.min(Math.max(Math.min(...times) - Date.now(), 3_000), 3_600_000);
    looking = setTimeout(() => during(mine, async () => {
        await learnMissing().catch(stopIfOver);
        const due = owed.filter((person) => (person.standing?.owed?.next ?? 0) <= Date.now() + 1_000 || person.standing?.owed?.running);
        if (due.length > 0) await learnAgain(mine, due);
        // Who was paid may not have been announced yet, if /sync fails.
        for (const person of due) if (!person.standing?.owed) stale.add(person.id);
        if (stale.size > 0) await hear(mine).catch(() => {});
        lookAgain(mine);
    }), wait);
}

// The button.

const refreshPatience = 150_000; // an administrator may let a server have two minutes
const newsPatience = 5_000;

async function press(person) {
    if (person.busy || (person.notBefore ?? 0) > Date.now()) return;
    const mine = session;
    const before = person.keys;
    person.busy = true;
    show(person);
    announce(person);
    let told;
    const news = new Promise((resolve) => { told = resolve; });
    person.waiting.add(told); // before asking: the answer and the news race
    await during(mine, async () => {
        try {
            await request("POST", refreshPath(person.id), {}, { timeout: refreshPatience });
            await Promise.race([news, pause(newsPatience, mine.ending.signal)]);
            mine.ending.signal.throwIfAborted();
            if (person.waiting.has(told)) await learnKeys([person]);
            person.result = { kind: "good", said: [["done"], ...differenceIn(person, before)] };
        } catch (error) {
            mine.ending.signal.throwIfAborted();
            if (!(error instanceof Unreachable || error instanceof Refusal)) throw error;
            person.result = { kind: "bad", ...failureOf(error, person) };
        } finally {
            person.waiting.delete(told);
            person.busy = false;
        }
        await learnStandings([person]).then(learnMissing).catch(stopIfOver);
        show(person);
        announce(person);
        if (person.result.kind === "good") rows.get(person.id).disclosure.open = true;
        lookAgain(mine);
    });
}

function differenceIn(person, before) {
    if (!before || before === person.keys) return [];
    const { added, removed, altered } = difference(person.id, before, person.keys);
    const said = [];
    if (added > 0) said.push(["added", { n: added }]);
    if (removed > 0) said.push(["removed", { n: removed }]);
    if (said.length === 0 && altered) said.push(["altered"]);
    return said;
}

// failureOf is the sentence for what a refresh was answered, and the homeserver's own words on it.
function failureOf(error, person) {
    if (error instanceof Unreachable) return { said: [[error.late ? "slow" : "unreachable"]] };
    const failure = own(error.body, "org.matrix.msc2638.failure");
    const server = foreign(own(failure, "destination"), 255) || person.server;
    const detail = error.said;
    const reasons = ["dns", "connect", "tls", "timeout", "http", "bad_response", "denied"];
    if (reasons.includes(own(failure, "reason"))) {
        const retry = own(failure, "retry_after_ms");
        if (retry > 0) person.standing = { fetchedAt: person.standing?.fetchedAt ?? null, owed: { reason: failure.reason, running: false, next: Date.now() + retry } };
        return { said: [[failure.reason, { server }]], detail };
    }
    if (failure !== undefined && detail) return { said: [["refused", { error: detail }]] }; // a reason of tomorrow
    if (error.status === 429) {
        person.notBefore = Date.now() + error.retryAfterMs;
        if (error.retryAfterMs === 0) return { said: [["limitedSome"]] };
        pause(error.retryAfterMs, here().ending.signal).then(() => show(person));
        return { said: [["limited", { time: clock(person.notBefore) }]] };
    }
    if (error.errcode === "M_GUEST_ACCESS_FORBIDDEN") return { said: [["guest"]] };
    if (error.status < 500 && detail) return { said: [["refused", { error: detail }]] };
    return { said: [["problem"]], detail };
}

arrive();
