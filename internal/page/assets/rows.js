// How a person is shown. All text goes in as text.

const $ = (id) => document.getElementById(id);

function make(tag, className, ...children) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    element.append(...children);
    return element;
}

const bdi = (text) => make("bdi", "", document.createTextNode(text));
const mark = (sign) => {
    const element = make("span", "mark", sign);
    element.setAttribute("aria-hidden", "true");
    return element;
};

const rows = new Map();

// rowOf is the row of a person, made when it is first shown.
function rowOf(person) {
    const known = rows.get(person.id);
    if (known) return known.element;
    const number = rows.size;
    const name = make("h2", "name", bdi(called(person) === person.id ? foreign(person.id, 255) : person.name));
    name.id = "name-" + number;
    const button = make("button", "refresh");
    button.type = "button";
    button.id = "refresh-" + number;
    button.setAttribute("aria-labelledby", button.id + " " + name.id);
    button.addEventListener("click", () => press(person));
    const who = make("div", "who", name);
    if (person.name) who.append(make("p", "mxid", bdi(foreign(person.id, 255))));
    const row = {
        button, facts: make("p", "facts"), result: make("p", "result"), detail: make("p", "small detail"),
        summary: make("summary"), devices: make("ul", "devices"), master: make("p", "small fingerprint"), shown: null,
    };
    row.master.hidden = true;
    row.disclosure = make("details", "", row.summary, row.master, row.devices);
    row.element = make("li", "card person", make("div", "top", who, button), row.facts, row.result, row.detail, row.disclosure);
    rows.set(person.id, row);
    show(person);
    return row.element;
}

// show brings a person's row up to date, if there is one.
function show(person) {
    const row = rows.get(person.id);
    if (!row) return;
    row.button.textContent = t(person.busy ? "refreshing" : "refresh");
    const pausing = person.busy || (person.notBefore ?? 0) > Date.now();
    if (pausing) row.button.setAttribute("aria-disabled", "true");
    else row.button.removeAttribute("aria-disabled");
    row.button.classList.toggle("busy", person.busy);
    showFacts(person, row);
    showResult(person, row);
    showDevices(person, row);
}

function showFacts(person, row) {
    const facts = [];
    const add = (className, name, params) => facts.push(say(make("span", "fact " + className), name, params));
    const { keys, standing } = person;
    if (standing?.owed) add("warn", "waiting", { server: person.server });
    if (keys && !person.local && !isObject(keys.master)) add("warn", "noCrossSigning");
    if (keys?.unanswered && !standing?.owed) add("warn", "unanswered", { server: person.server });
    if (person.local) add("", "local");
    else if (standing?.fetchedAt) add("", "refreshed", { time: clock(standing.fetchedAt) });
    else if (standing) add("", "never");
    row.facts.replaceChildren(...facts.flatMap((fact, i) => (i > 0 ? [" ", fact] : [fact])));
    row.facts.hidden = facts.length === 0;
}

// sentences are what is to be said of a person just now: what became of the button, and what is still to come.
function sentencesOn(person) {
    const { result, standing } = person;
    if (person.busy) return { kind: "wait", said: [person.local ? ["askingOwn"] : ["askingServer", { server: person.server }]] };
    const owed = standing?.owed;
    if (!result && !owed) return null;
    const said = result ? [...result.said] : [];
    if (!result && Object.hasOwn(strings, owed.reason ?? "")) said.push([owed.reason, { server: person.server }]);
    if (owed && result?.kind !== "good") said.push(owed.running ? ["tryingNow"] : ["keepTrying", { time: clock(owed.next) }]);
    return { kind: result?.kind ?? "bad", said };
}

const marks = { good: "✓", bad: "!", wait: "…" };

function showResult(person, row) {
    const told = sentencesOn(person);
    row.result.hidden = told === null;
    row.result.className = "result " + (told?.kind ?? "");
    row.result.replaceChildren(...(told ? [mark(marks[told.kind]), ...sentences(told.said)] : []));
    const detail = person.busy ? "" : person.result?.detail ?? "";
    row.detail.hidden = detail === "";
    if (detail) say(row.detail, "details", { error: detail });
}

function sentences(said) {
    return said.flatMap(([name, params], i) => {
        const sentence = say(make("span"), name, params);
        return i > 0 ? [" ", sentence] : [sentence];
    });
}

// showDevices shows what is known at once, and what the signatures are worth when they are checked.
function showDevices(person, row) {
    if (!person.keys) {
        say(row.summary, "devicesUnknown");
        row.devices.replaceChildren();
        row.master.hidden = true;
        return;
    }
    if (row.shown === person.keys) return;
    const keys = row.shown = person.keys;
    const ids = Object.keys(keys.devices);
    const devices = ids.length > 0 ? t("devices", { n: ids.length }) : t("noDevices");
    row.summary.textContent = devices;
    examine(person.id, keys).then((found) => {
        if (row.shown !== keys) return;
        const unsigned = found.devices.filter((device) => device.verdict === "unsigned").length;
        if (unsigned > 0) say(row.summary, "devicesUnsigned", { n: unsigned, devices });
        row.devices.replaceChildren(...found.devices.map(deviceItem));
        row.master.hidden = found.master === "";
        say(row.master, "ownerKey", { fingerprint: found.master });
    });
}

const verdictMarks = { signed: "✓", unsigned: "!", broken: "!", noOwnerKeys: "–", unchecked: "?" };
const verdictClasses = { signed: "good", unsigned: "warn", broken: "bad", noOwnerKeys: "", unchecked: "" };

function deviceItem(device) {
    const name = device.name ? make("span", "device-name", bdi(device.name)) : say(make("span", "device-name"), "unnamed");
    const fingerprint = device.fingerprint ? say(make("p", "small fingerprint"), "fingerprint", { fingerprint: device.fingerprint }) : say(make("p", "small"), "noFingerprint");
    return make("li", "device",
        make("p", "device-top", name, " ", say(make("span", "small device-id"), "deviceId", { id: foreign(device.id, 255) })),
        make("p", "verdict " + verdictClasses[device.verdict], mark(verdictMarks[device.verdict]), say(make("span"), device.verdict)),
        fingerprint);
}

const pageOf = 50; // how many people are shown at first, and more at a time
let limit = pageOf;
let ordered = [];

// showList shows the people whom the search finds, the first of them.
function showList() {
    const wanted = $("find").value.trim().toLowerCase();
    const found = wanted === "" ? ordered : ordered.filter((person) => person.name.toLowerCase().includes(wanted) || person.id.toLowerCase().includes(wanted));
    $("list").replaceChildren(...found.slice(0, limit).map(rowOf));
    $("more").hidden = found.length <= limit;
    $("search").hidden = ordered.length <= 8;
    $("summary").hidden = false;
    if (ordered.length === 0) say($("summary"), "nobody");
    else if (found.length === 0) say($("summary"), "nobodyFound");
    else say($("summary"), wanted === "" ? "persons" : "personsFound", { n: found.length });
}

// announce tells a screen reader what became of a person.
function announce(person) {
    const told = sentencesOn(person);
    if (told) $("news").replaceChildren(bdi(called(person)), ": ", ...sentences(told.said));
}
