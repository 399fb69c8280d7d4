// A caller's program: submits a typed job, waits for its end, and prints what it got as one JSON object.
import createClient from "openapi-fetch";
import type { components, paths } from "./schema";

declare const process: { argv: string[] };

const api = createClient<paths>({ baseUrl: process.argv[2] });

const params: components["schemas"]["ClipParams"] = {
  source: "https://media.example/film.mp4",
  language: "de",
  box: { width: 2 },
};
const submitted = await api.POST("/jobs", { body: { type: "clip", params } });
if (!submitted.data) {
  throw new Error(submitted.error.detail);
}
const job = await api.GET("/jobs/{job_id}", {
  params: { path: { job_id: submitted.data.job_id }, query: { wait: 60, include: "params,outputs" } },
});
const plain = await api.POST("/jobs", { body: { type: "mock_process", delay_seconds: 600 } });
const batch = await api.POST("/jobs/batch", {
  body: { jobs: [{ type: "mock_process", delay_seconds: 600 }, { type: "clip", params, delay_seconds: 600 }] },
});
const types = await api.GET("/job-types");
// A cast is what it takes to send a wrong parameter: the API refuses it by its field.
const refused = await api.POST("/jobs", { body: { type: "clip", params: { source: 7 as unknown as string } } });

console.log(
  JSON.stringify({
    job: job.data,
    plain: plain.data?.job_id,
    batch: batch.data?.job_ids,
    types: types.data?.job_types.map((entry) => entry.type),
    refused: [refused.response.status, refused.error?.field],
  }),
);
