// Validate custom resources, a JSON list on stdin, with the validators of @kubernetes-models.
// Prints one line for each invalid object, and ends with status 1 then.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import { readFileSync } from "node:fs";

const require = createRequire(pathToFileURL(process.argv[2] + "/"));
const keda = require("@kubernetes-models/keda/keda.sh/v1alpha1");
const root = process.argv[2] + "/node_modules/@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/";
const { PrometheusRule } = await import(pathToFileURL(root + "PrometheusRule.js"));
const { PodMonitor } = await import(pathToFileURL(root + "PodMonitor.js"));
const kinds = { ScaledObject: keda.ScaledObject, PrometheusRule, PodMonitor };

for (const object of JSON.parse(readFileSync(0, "utf8"))) {
  try {
    new kinds[object.kind](object).validate();
  } catch (error) {
    console.log(`${object.kind}/${object.metadata.name}: ${error.message}`);
    process.exitCode = 1;
  }
}
