// Sends one message of each kind with Segment's SDK for Node.js: node send.js HOST KEY
const { Analytics } = require("@segment/analytics-node");

const [host, writeKey] = process.argv.slice(2);
const analytics = new Analytics({ host, writeKey, maxRetries: 0 });
analytics.on("error", (e) => {
  console.error(e);
  process.exitCode = 1;
});
analytics.identify({ userId: "u1", anonymousId: "v1", traits: { email: "ada@example.com", firstName: "Ada", plan: "pro" } });
analytics.track({ userId: "u1", event: "Order Placed", properties: { total: 120, lines: [{ sku: "a" }] } });
analytics.page({ anonymousId: "v1", name: "Home", properties: { url: "https://example.com/" } });
analytics.screen({ userId: "u1", name: "Cart" });
analytics.group({ userId: "u1", groupId: "g1", traits: { size: 3 } });
analytics.alias({ userId: "u1", previousId: "v0" });
analytics.closeAndFlush({ timeout: 30_000 });
