import { ClientPrefix, Method } from "matrix-js-sdk";
import { CryptoEvent } from "matrix-js-sdk/lib/crypto-api/index.js";

const sentences = {
    dns: (server) => `The address of ${server} cannot be found.`,
    connect: (server) => `${server} cannot be reached.`,
    tls: (server) => `No secure connection to ${server} is possible.`,
    timeout: (server) => `${server} takes too long to answer.`,
    http: (server) => `${server} answered with an error.`,
    bad_response: (server) => `${server} sent something that is no device list.`,
    denied: (server) => `Your homeserver does not talk to ${server}.`,
};

// Asks userId's own server for their devices, once, and returns the sentence to show. The news itself comes through /sync.
export async function refreshDevices(client, userId, patienceMs = 5000) {
    if (!(await client.doesServerSupportUnstableFeature("org.matrix.msc2638"))) return "Your homeserver cannot do this.";
    let hear, timer;
    const updated = new Promise((resolve) => {
        hear = (users) => users.includes(userId) && resolve("The devices are up to date now.");
        timer = setTimeout(resolve, patienceMs, "The devices were up to date already.");
    });
    client.on(CryptoEvent.DevicesUpdated, hear); // before asking: the answer and the news race
    try {
        const path = `/user/${encodeURIComponent(userId)}/devices/refresh`;
        await client.http.authedRequest(Method.Post, path, undefined, {}, { prefix: ClientPrefix.V3 });
        return await updated;
    } catch (error) {
        const failure = error.data?.["org.matrix.msc2638.failure"];
        const sentence = sentences[failure?.reason]?.(failure.destination) ?? error.data?.error ?? "Your homeserver cannot be reached.";
        return failure?.retry_after_ms ? `${sentence} Your homeserver goes on trying by itself.` : sentence;
    } finally {
        clearTimeout(timer);
        client.off(CryptoEvent.DevicesUpdated, hear);
    }
}
