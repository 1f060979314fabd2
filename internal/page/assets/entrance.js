// Signing in and out.

// notice shows a sentence in an element, or hides it. What stands there already is not said again to a screen reader.
function notice(id, name, params) {
    const element = $(id), said = JSON.stringify([name, params]);
    if (element.dataset.said === said) return;
    element.dataset.said = said;
    element.hidden = name === undefined;
    if (name === undefined) element.replaceChildren();
    else say(element, name, params);
}

function onlyShow(view) {
    for (const id of ["entrance", "room"]) $(id).hidden = id !== view;
    $("bar").hidden = view !== "room";
    scrollTo(0, 0);
    $(view + "-title").focus({ preventScroll: true });
}

const stateKey = "freshen.sso";

// entrance shows how to sign in, with a word on why one is here.
async function entrance(name, params) {
    onlyShow("entrance");
    notice("notice", name, params);
    await findDoors();
}

async function findDoors() {
    for (const id of ["password-form", "or", "sso", "ask-again"]) $(id).hidden = true;
    $("doors-wait").hidden = false;
    let flows;
    try {
        flows = (await request("GET", v3 + "/login", undefined, { as: null })).flows ?? [];
    } catch (error) {
        if (!(error instanceof Refusal && error.status === 404)) {
            $("ask-again").hidden = false;
            notice("notice", ...troubleOf(error));
            return;
        }
        flows = [];
    } finally {
        $("doors-wait").hidden = true;
    }
    const password = flows.some((flow) => flow.type === "m.login.password");
    const sso = flows.find((flow) => flow.type === "m.login.sso");
    if (!password && !sso) notice("notice", "noWayIn");
    $("password-form").hidden = !password;
    $("sso").hidden = !sso;
    $("or").hidden = !(password && sso);
    if (sso) $("sso").replaceChildren(...providersOf(sso).map((provider) => ssoButton(provider, password)));
}

function providersOf(flow) {
    const providers = Array.isArray(flow.identity_providers) ? flow.identity_providers.filter((provider) => typeof provider?.id === "string") : [];
    return providers.length > 0 ? providers : [{}];
}

function ssoButton(provider, besides) {
    const button = make("button", besides ? "quiet" : "");
    button.type = "button";
    const name = foreign(provider.name);
    say(button, name ? "ssoWith" : "sso", { provider: name });
    button.addEventListener("click", () => {
        // What comes back must have been begun here: else somebody could have us sign in as them.
        const state = crypto.getRandomValues(new Uint32Array(4)).join("-");
        sessionStorage.setItem(stateKey, state);
        const back = location.origin + location.pathname + "?state=" + state;
        location.assign(base + v3 + "/login/sso/redirect" + (provider.id === undefined ? "" : "/" + encodeURIComponent(provider.id)) +
            "?redirectUrl=" + encodeURIComponent(back));
    });
    return button;
}

// troubleOf says what is wrong with the homeserver itself.
function troubleOf(error) {
    if (error instanceof Unreachable) return ["unreachable"];
    if (error instanceof Refusal && error.said) return ["problemSaid", { error: error.said }];
    return ["problem"];
}

function signInTrouble(error, byToken) {
    if (error instanceof Refusal) {
        if (error.status === 429) return error.retryAfterMs > 0 ? ["tooManySignIns", { time: clock(Date.now() + error.retryAfterMs) }] : ["tooManySignInsSome"];
        if (error.errcode === "M_USER_DEACTIVATED") return ["deactivated"];
        if ([401, 403].includes(error.status)) return byToken ? ["signInExpired"] : ["wrongPassword"];
        if (error.status < 500 && error.said) return ["signInFailed", { error: error.said }];
    }
    return troubleOf(error);
}

$("password-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    if ($("enter").getAttribute("aria-disabled")) return;
    $("enter").setAttribute("aria-disabled", "true");
    $("enter").textContent = t("signingIn");
    notice("notice");
    const user = $("user").value.trim(), password = $("password").value;
    try {
        await signInWith({ type: "m.login.password", identifier: { type: "m.id.user", user }, password });
        $("password").value = "";
        begin();
    } catch (error) {
        notice("notice", ...signInTrouble(error, false));
        $("password").value = "";
        $("password").focus();
    } finally {
        $("enter").removeAttribute("aria-disabled");
        $("enter").textContent = t("signIn");
    }
});

$("ask-again").addEventListener("click", () => {
    notice("notice");
    findDoors();
});

// arrive takes up a sign-in that comes back from the homeserver, or begins with the entrance. The token leaves the address.
async function arrive() {
    const query = new URLSearchParams(location.search);
    const token = query.get("loginToken"), state = sessionStorage.getItem(stateKey);
    sessionStorage.removeItem(stateKey);
    if (location.search) history.replaceState(null, "", location.pathname);
    if (token === null) return entrance();
    if (state === null || query.get("state") !== state) return entrance("foreignSignIn");
    onlyShow("entrance");
    notice("notice", "signingIn");
    try {
        await signInWith({ type: "m.login.token", token });
    } catch (error) {
        return entrance(...signInTrouble(error, true));
    }
    notice("notice");
    begin();
}

sessionEnded = () => leave("ended");

$("leave").addEventListener("click", async () => {
    const was = endSession();
    if (!was) return;
    let farewell = "signedOut";
    try {
        await signOutOf(was);
    } catch (error) {
        if (!(error instanceof Refusal && error.status === 401)) farewell = "signedOutAlone";
    }
    leave(farewell);
});

function leave(why) {
    forget();
    rows.clear();
    clearTimeout(looking);
    ordered = [];
    limit = pageOf;
    $("list").replaceChildren();
    $("news").replaceChildren();
    $("find").value = "";
    entrance(why);
}
