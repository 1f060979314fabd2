// Device keys: what is signed by whom. Signatures are checked by the browser's own Ed25519.

// canonical is the canonical JSON of a value as the specification has it: members in the order of their names' code points.
function canonical(value) {
    if (value === null || typeof value !== "object") return JSON.stringify(value);
    if (Array.isArray(value)) return "[" + value.map(canonical).join(",") + "]";
    return "{" + Object.keys(value).sort(byCodePoint).map((key) => JSON.stringify(key) + ":" + canonical(value[key])).join(",") + "}";
}

function byCodePoint(a, b) {
    const [left, right] = [[...a], [...b]];
    for (let i = 0; i < Math.min(left.length, right.length); i++) {
        const difference = left[i].codePointAt(0) - right[i].codePointAt(0);
        if (difference !== 0) return difference;
    }
    return left.length - right.length;
}

// signedPart is what signatures over an object are over.
function signedPart(object) {
    return canonical(Object.fromEntries(Object.entries(object).filter(([name]) => name !== "signatures" && name !== "unsigned")));
}

const keyLength = 32, signatureLength = 64;

// bytesOf decodes unpadded base64; null for anything else, or of another length.
function bytesOf(text, length) {
    if (typeof text !== "string" || !/^[A-Za-z0-9+/]+$/.test(text)) return null;
    try {
        const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
        return bytes.length === length ? bytes : null;
    } catch {
        return null;
    }
}

// canCheck says, once it was tried, whether this browser checks Ed25519. It does not without TLS.
const canCheck = (async () => {
    try {
        await crypto.subtle.importKey("raw", new Uint8Array(keyLength).fill(1), "Ed25519", false, ["verify"]);
        return true;
    } catch {
        return false;
    }
})();

const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
const own = (object, name) => (isObject(object) && Object.hasOwn(object, name) ? object[name] : undefined);

// signedBy says whether user's key of that name, with that value, has signed the object.
async function signedBy(object, user, name, key) {
    const raw = bytesOf(key, keyLength), signature = bytesOf(own(own(own(object, "signatures"), user), "ed25519:" + name), signatureLength);
    if (!raw || !signature) return false;
    try {
        const imported = await crypto.subtle.importKey("raw", raw, "Ed25519", false, ["verify"]);
        return await crypto.subtle.verify("Ed25519", imported, signature, new TextEncoder().encode(signedPart(object)));
    } catch {
        return false; // a key that is none
    }
}

// crossSigningKey is the one key of a cross-signing object that is user's and of that usage; "" if it is not one.
function crossSigningKey(object, user, usage) {
    const keys = Object.entries(own(object, "keys") ?? {});
    if (own(object, "user_id") !== user || !own(object, "usage")?.includes?.(usage) || keys.length !== 1) return "";
    const [id, value] = keys[0];
    return id === "ed25519:" + value && bytesOf(value, keyLength) ? value : "";
}

// examine says of each device of user's what its signatures are worth: signed, unsigned, noOwnerKeys, broken, unchecked.
// keys is what /keys/query told: { devices, master, selfSigning }.
async function examine(user, keys) {
    const checks = await canCheck;
    const master = crossSigningKey(keys.master, user, "master"), selfSigning = crossSigningKey(keys.selfSigning, user, "self_signing");
    const owner = checks && master && selfSigning && (await signedBy(keys.selfSigning, user, master, master)) ? selfSigning : "";
    const devices = await Promise.all(Object.entries(keys.devices).map(async ([id, device]) => {
        const key = own(own(device, "keys"), "ed25519:" + id);
        return {
            id,
            name: foreign(own(own(device, "unsigned"), "device_display_name")),
            fingerprint: bytesOf(key, keyLength) ? inGroups(key) : "",
            verdict: await verdictOn(user, id, device, key),
        };
    }));
    devices.sort((a, b) => a.name.localeCompare(b.name) || a.id.localeCompare(b.id));
    return { devices, master: master ? inGroups(master) : "" };

    async function verdictOn(user, id, device, key) {
        if (own(device, "user_id") !== user || own(device, "device_id") !== id || !bytesOf(key, keyLength)) return "broken";
        if (!checks) return "unchecked";
        if (!(await signedBy(device, user, id, key))) return "broken";
        if (!master) return "noOwnerKeys";
        return owner && (await signedBy(device, user, owner, owner)) ? "signed" : "unsigned";
    }
}
