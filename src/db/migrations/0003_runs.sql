CREATE TABLE "tutti"."run_turns" (
	"tenant_id" text PRIMARY KEY NOT NULL,
	"claimed_at" timestamp with time zone NOT NULL
);
--> statement-breakpoint
ALTER TABLE "tutti"."run_turns" ADD CONSTRAINT "run_turns_tenant_id_tenants_tenant_id_fk" FOREIGN KEY ("tenant_id") REFERENCES "tutti"."tenants"("tenant_id") ON DELETE cascade ON UPDATE no action;--> statement-breakpoint
CREATE INDEX "runs_queue_tenant" ON "tutti"."runs" USING btree ("tenant_id","queued_at") WHERE "tutti"."runs"."state" = 'queued';