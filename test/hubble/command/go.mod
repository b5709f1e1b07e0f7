module tapestry.dev/tapestry/test/hubble/command

go 1.26.8

require github.com/cilium/cilium v1.20.2
