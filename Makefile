# make help lists the targets.
.DEFAULT_GOAL := help
.PHONY: help run test lint build fmt generate stop bench mails deploy e2e

help: ## this list
	@grep -hE '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

run: ## sets up what it needs and shows the main job: a campaign from contacts to tracked mails, with a report
	@scripts/run.sh

test: ## sets up what it needs and runs every test that needs no cluster
	@scripts/test.sh

build: ## builds onda and the functions into bin/
	@scripts/build.sh

bench: ## measures the main paths against bare references; ONLY=send for one (send, pixel, click, cold, batch, form-page, form-submit, segment, campaign); ONLY=havoc and ONLY=hits count what faults lose
	@scripts/bench.sh

mails: ## sends mails of ten kinds through a real Postfix, and has OpenDKIM and SpamAssassin judge them
	@scripts/mails.sh

e2e: ## runs Onda on the cluster of the present kubeconfig and puts it to the proof; ONLY=Campaign for some, ONDA_E2E_WIPE=1 to delete an Onda that is there
	@scripts/e2e.sh

deploy: ## builds and deploys one function: FN=send TENANT=dev-ana, or FN=send RING=next
	@scripts/deploy.sh

lint: ## linters
	@scripts/lint.sh

fmt: ## formats
	@gofmt -w cmd internal functions eventing examples test

generate: ## makes schemas, event types and READMEs' tables anew from the code
	@go test ./internal/event ./functions -run 'Generate|README' -update

stop: ## stops the private Postgres of this checkout
	@scripts/postgres.sh stop
