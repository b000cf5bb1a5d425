// The admin API over the Unix socket, whose peer may do everything: for what a flow needs before it begins.

import { Agent, request } from "node:http";

export class Admin {
  constructor(socketPath) {
    this.agent = new Agent({ keepAlive: true, maxSockets: 64 });
    this.socketPath = socketPath;
  }

  /** Status and JSON of an answer. */
  send(method, path, body) {
    const text = body === undefined ? "" : JSON.stringify(body);
    const headers = { host: "localhost", "content-type": "application/json", "content-length": Buffer.byteLength(text) };
    return new Promise((resolve, reject) => {
      const asked = request({ socketPath: this.socketPath, agent: this.agent, method, path, headers }, (answer) => {
        const chunks = [];
        answer.on("data", (chunk) => chunks.push(chunk));
        answer.on("error", reject);
        answer.on("end", () => {
          const said = Buffer.concat(chunks).toString();
          resolve({ status: answer.statusCode, data: said === "" ? null : JSON.parse(said) });
        });
      });
      asked.on("error", reject);
      asked.end(text);
    });
  }

  /** What was granted. */
  async ask(method, path, body) {
    const { status, data } = await this.send(method, path, body);
    if (status < 200 || status > 299) throw new Error(`${method} ${path}: ${status} ${JSON.stringify(data)}`);
    return data;
  }

  get(path) {
    return this.ask("GET", path);
  }

  post(path, body) {
    return this.ask("POST", path, body);
  }

  close() {
    this.agent.destroy();
  }
}
