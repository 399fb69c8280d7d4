// Each line is a job that the API refuses. The compiler refuses each of them too.
import createClient from "openapi-fetch";
import type { paths } from "./schema";

const api = createClient<paths>({ baseUrl: "" });

await api.POST("/jobs", { body: { type: "clip", params: { source: 7 } } });
await api.POST("/jobs", { body: { type: "clip", params: { source: "a", language: "fr" } } });
await api.POST("/jobs", { body: { type: "clip", params: { source: "a", nope: 1 } } });
await api.POST("/jobs", { body: { type: "clip", params: { source: "a", box: { width: "2" } } } });
await api.POST("/jobs", { body: { type: "clip", params: { source: "a", tags: [1] } } });
await api.POST("/jobs", { body: { type: "clip", params: {} } });
await api.POST("/jobs", { body: { type: "clip" } });
await api.POST("/jobs", { body: { type: "other" } });
await api.POST("/jobs", { body: { type: "mock_process", params: { source: "a" } } });
await api.POST("/jobs", { body: { type: "clip", params: { source: "a" }, fail_at_stage: "extracting" } });
