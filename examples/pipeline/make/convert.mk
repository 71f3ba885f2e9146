# Use `include convert.mk`, then `make model-bf16/config.json` or a rule that depends on it. MODEL is the
# directory to convert; it is converted again when its config.json is newer. config.json is the last
# file to appear, so if it exists, the model is complete.
#
# make continues after exit code 0. After 1, 2, 65, 73 and 74 (tried three times) it prints the code as
# "Error 65", and ends with its own code, 2; convert.sh says what to do. After 130 and 143 the next
# `make` continues the conversion.
MODEL ?= model
CONVERT ?= convert.sh

$(MODEL)-fp32/config.json $(MODEL)-fp16/config.json $(MODEL)-bf16/config.json: \
$(MODEL)-%/config.json: $(MODEL)/config.json
	sh $(CONVERT) $(MODEL) $(@D) --to $* --overwrite --quiet
	touch $@
