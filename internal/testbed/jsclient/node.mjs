// Reads commands from stdin, one JSON object a line, and writes an answer for each to stdout as soon as it is there. The end
// of stdin ends the process, so that it never outlives whoever started it.
import readline from "node:readline";

for (const level of ["log", "info", "debug", "trace"]) console[level] = console.error; // stdout is for answers
const { run } = await import("./client.mjs");

readline.createInterface({ input: process.stdin }).on("line", async (line) => {
    const { id, ...command } = JSON.parse(line);
    let answer;
    try {
        answer = { id, result: (await run(command, false)) ?? null };
    } catch (error) {
        console.error(error);
        answer = { id, error: String(error) };
    }
    process.stdout.write(JSON.stringify(answer) + "\n");
}).on("close", () => process.exit(0));
