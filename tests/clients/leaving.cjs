// A client that gives up on a long call and stays connected, through a TypeScript SDK.
// node leaving.cjs PLAN, where PLAN is JSON: {modules: [CLIENT, TRANSPORT], mode, server, action, small, long}.
// `server` is a URL, or a command with its arguments. `action` is one of:
// "give up": prints a line once the model is loaded, and then the time when each way of giving up ended the call;
// it waits for a line before the next;
// "wait": prints what the call answered without progress, and what get_job answers about it.

const readline = require("node:readline");
const plan = JSON.parse(process.argv[2]);
const { Client } = require(plan.modules[0]);
const { StdioClientTransport, StreamableHTTPClientTransport } = require(plan.modules[1]);
const first = plan.modules[0].includes("/sdk/"); // version 1 of the SDK takes a result schema before the options

function transport() {
  if (typeof plan.server === "string") return new StreamableHTTPClientTransport(new URL(plan.server));
  const [command, ...args] = plan.server;
  return new StdioClientTransport({ command, args, env: process.env, stderr: "inherit" });
}

async function main() {
  const client = new Client({ name: "leaving", version: "1" }, { versionNegotiation: { mode: plan.mode } });
  await client.connect(transport());
  const call = (name, given, options) =>
    client.callTool({ name, arguments: given }, ...(first ? [undefined, options] : [options]));
  const lines = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]();

  if (plan.action === "wait") {
    const answer = await call("generate_image", plan.long);
    const job_id = answer.structuredContent.job_id;
    const job = await call("get_job", { job_id, wait_seconds: 50 });
    console.log(JSON.stringify([answer.structuredContent, job.structuredContent]));
  }
  if (plan.action === "give up") {
    await call("generate_image", { prompt: "warm", ...plan.small });
    console.log("ready");
  }
  for (const way of plan.action === "give up" ? ["abort", "time out"] : []) {
    const options = way === "abort" ? { signal: AbortSignal.timeout(700) } : { timeout: 700 };
    await call("generate_image", { ...plan.long, prompt: way }, options).then(
      () => console.log("it was answered"),
      () => console.log(Date.now() / 1000),
    );
    await lines.next();
  }
  await call("list_images", {});
  await client.close();
}

main().then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
