// What people read: the table of strings, times, and how foreign text is put beside it.

const one = new Intl.PluralRules("en");

// template is the string of that name; one that has several forms is chosen by n.
function template(name, params) {
    const found = strings[name];
    return typeof found === "string" ? found : found[one.select(params.n)];
}

// t is a string as text, for what takes no parameters from strangers.
function t(name, params = {}) {
    return template(name, params).replace(/\{(\w+)\}/g, (_, key) => params[key]);
}

// say puts a string into an element, each parameter in a <bdi> of its own, so that no foreign text changes the direction or
// the order of what stands around it. It never makes markup of anything.
function say(element, name, params = {}) {
    const parts = template(name, params).split(/\{(\w+)\}/);
    element.replaceChildren(...parts.map((part, i) => {
        if (i % 2 === 0) return document.createTextNode(part);
        const bdi = document.createElement("bdi");
        bdi.textContent = params[part];
        return bdi;
    }));
    return element;
}

const mostForeign = 120; // characters of a name

// foreign is text that strangers wrote, without what is invisible or changes the direction of text, in one line, not too
// long, and with no towers of accents. The joiners that some scripts are written with stay.
function foreign(text, most = mostForeign) {
    if (typeof text !== "string") return "";
    const clean = text.replace(/(?![\u200c\u200d])[\p{Cc}\p{Cf}\p{Co}\p{Cs}\p{Zl}\p{Zp}]/gu, " ").replace(/(\p{M}{4})\p{M}+/gu, "$1").replace(/\s+/gu, " ").trim();
    const characters = [...clean];
    return characters.length > most ? characters.slice(0, most - 1).join("") + "…" : clean;
}

const minute = 60_000;

// clock is when something happens or happened, as the reader's own locale writes it; with the day if that is another, and
// with seconds if it is about now.
function clock(at) {
    const now = Date.now(), when = new Date(at);
    if (when.toDateString() !== new Date(now).toDateString()) {
        return new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" }).format(when);
    }
    const near = at > now && at - now < 2 * minute;
    return new Intl.DateTimeFormat(undefined, { hour: "numeric", minute: "2-digit", second: near ? "2-digit" : undefined }).format(when);
}

// inGroups is a fingerprint as people compare it.
function inGroups(key) {
    return key.match(/.{1,4}/g).join(" ");
}
