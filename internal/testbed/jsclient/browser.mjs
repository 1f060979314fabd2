// The same client as in Node.js, for a page whose console is somebody else's: each call of freshenRun takes one command and
// resolves with its answer. As Element does, it keeps its keys in IndexedDB.
import { run } from "./client.mjs";

window.freshenRun = async (command) => {
    try {
        return JSON.stringify({ result: (await run(command, true)) ?? null });
    } catch (error) {
        return JSON.stringify({ error: String(error) });
    }
};
