-- The schema "tutti" is there: whoever runs the migrations makes it first.
CREATE TABLE "tutti"."api_keys" (
	"id" text PRIMARY KEY NOT NULL,
	"tenant_id" text,
	"scopes" text[] NOT NULL,
	"hash" text NOT NULL,
	"name" text NOT NULL,
	"created_at" timestamp with time zone DEFAULT now() NOT NULL,
	"revoked_at" timestamp with time zone
);
--> statement-breakpoint
CREATE TABLE "tutti"."directory" (
	"revision" bigint NOT NULL
);
--> statement-breakpoint
CREATE TABLE "tutti"."events" (
	"room_id" bigint NOT NULL,
	"seq" bigint NOT NULL,
	"tenant_id" text NOT NULL,
	"mid" text NOT NULL,
	"type" text NOT NULL,
	"data" json NOT NULL,
	"by" json NOT NULL,
	"at" bigint NOT NULL,
	CONSTRAINT "events_room_id_seq_pk" PRIMARY KEY("room_id","seq")
);
--> statement-breakpoint
CREATE TABLE "tutti"."issuers" (
	"id" text PRIMARY KEY NOT NULL,
	"tenant_id" text,
	"iss" text NOT NULL,
	"audience" text NOT NULL,
	"algorithms" text[] NOT NULL,
	"typ" text,
	"keys" jsonb NOT NULL,
	"created_at" timestamp with time zone DEFAULT now() NOT NULL
);
--> statement-breakpoint
CREATE TABLE "tutti"."revocations" (
	"id" text PRIMARY KEY NOT NULL,
	"tenant_id" text,
	"kind" text NOT NULL,
	"subject" text NOT NULL,
	"at" timestamp with time zone DEFAULT now() NOT NULL
);
--> statement-breakpoint
CREATE TABLE "tutti"."rooms" (
	"id" bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY (sequence name "tutti"."rooms_id_seq" INCREMENT BY 1 MINVALUE 1 MAXVALUE 9223372036854775807 START WITH 1 CACHE 1),
	"tenant_id" text NOT NULL,
	"name" text NOT NULL,
	"epoch" text NOT NULL,
	"head" bigint DEFAULT 0 NOT NULL,
	"floor" bigint DEFAULT 0 NOT NULL,
	"created_at" timestamp with time zone DEFAULT now() NOT NULL
);
--> statement-breakpoint
CREATE TABLE "tutti"."run_segments" (
	"run_id" text NOT NULL,
	"attempt" integer NOT NULL,
	"n" integer NOT NULL,
	"count" integer NOT NULL,
	"tenant_id" text NOT NULL,
	"parts" json NOT NULL,
	CONSTRAINT "run_segments_run_id_attempt_n_pk" PRIMARY KEY("run_id","attempt","n")
);
--> statement-breakpoint
CREATE TABLE "tutti"."runs" (
	"id" text PRIMARY KEY NOT NULL,
	"tenant_id" text NOT NULL,
	"room_id" bigint NOT NULL,
	"model" text NOT NULL,
	"state" text NOT NULL,
	"attempt" integer DEFAULT 1 NOT NULL,
	"max_attempts" integer NOT NULL,
	"fence" integer DEFAULT 0 NOT NULL,
	"committed" integer DEFAULT 0 NOT NULL,
	"input" json NOT NULL,
	"initiator" json NOT NULL,
	"mid" text,
	"worker" text,
	"lease_until" timestamp with time zone,
	"deadline" timestamp with time zone NOT NULL,
	"created_at" bigint NOT NULL,
	"queued_at" bigint NOT NULL,
	"started_at" bigint,
	"first_token_at" bigint,
	"finished_at" bigint,
	"usage" json,
	"error" json,
	"output" json
);
--> statement-breakpoint
CREATE TABLE "tutti"."tenants" (
	"tenant_id" text PRIMARY KEY NOT NULL,
	"name" text NOT NULL,
	"status" text DEFAULT 'active' NOT NULL,
	"created_at" timestamp with time zone DEFAULT now() NOT NULL
);
--> statement-breakpoint
ALTER TABLE "tutti"."api_keys" ADD CONSTRAINT "api_keys_tenant_id_tenants_tenant_id_fk" FOREIGN KEY ("tenant_id") REFERENCES "tutti"."tenants"("tenant_id") ON DELETE cascade ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "tutti"."events" ADD CONSTRAINT "events_room_id_rooms_id_fk" FOREIGN KEY ("room_id") REFERENCES "tutti"."rooms"("id") ON DELETE cascade ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "tutti"."issuers" ADD CONSTRAINT "issuers_tenant_id_tenants_tenant_id_fk" FOREIGN KEY ("tenant_id") REFERENCES "tutti"."tenants"("tenant_id") ON DELETE cascade ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "tutti"."revocations" ADD CONSTRAINT "revocations_tenant_id_tenants_tenant_id_fk" FOREIGN KEY ("tenant_id") REFERENCES "tutti"."tenants"("tenant_id") ON DELETE cascade ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "tutti"."rooms" ADD CONSTRAINT "rooms_tenant_id_tenants_tenant_id_fk" FOREIGN KEY ("tenant_id") REFERENCES "tutti"."tenants"("tenant_id") ON DELETE cascade ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "tutti"."run_segments" ADD CONSTRAINT "run_segments_run_id_runs_id_fk" FOREIGN KEY ("run_id") REFERENCES "tutti"."runs"("id") ON DELETE cascade ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "tutti"."runs" ADD CONSTRAINT "runs_room_id_rooms_id_fk" FOREIGN KEY ("room_id") REFERENCES "tutti"."rooms"("id") ON DELETE cascade ON UPDATE no action;--> statement-breakpoint
CREATE UNIQUE INDEX "events_mid" ON "tutti"."events" USING btree ("room_id","mid");--> statement-breakpoint
CREATE UNIQUE INDEX "issuers_iss" ON "tutti"."issuers" USING btree ("iss");--> statement-breakpoint
CREATE INDEX "revocations_at" ON "tutti"."revocations" USING btree ("at");--> statement-breakpoint
CREATE UNIQUE INDEX "rooms_tenant_name" ON "tutti"."rooms" USING btree ("tenant_id","name");--> statement-breakpoint
CREATE UNIQUE INDEX "runs_mid" ON "tutti"."runs" USING btree ("room_id","mid") WHERE "tutti"."runs"."mid" is not null;--> statement-breakpoint
CREATE INDEX "runs_queue" ON "tutti"."runs" USING btree ("model","queued_at") WHERE "tutti"."runs"."state" = 'queued';--> statement-breakpoint
CREATE INDEX "runs_live_room" ON "tutti"."runs" USING btree ("room_id") WHERE "tutti"."runs"."state" in ('queued', 'claimed', 'streaming');--> statement-breakpoint
CREATE INDEX "runs_live_tenant" ON "tutti"."runs" USING btree ("tenant_id") WHERE "tutti"."runs"."state" in ('queued', 'claimed', 'streaming');--> statement-breakpoint
CREATE INDEX "runs_lease" ON "tutti"."runs" USING btree ("lease_until") WHERE "tutti"."runs"."state" in ('claimed', 'streaming');--> statement-breakpoint
CREATE INDEX "runs_room" ON "tutti"."runs" USING btree ("room_id");