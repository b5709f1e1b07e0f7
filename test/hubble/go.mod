module tapestry.dev/tapestry/test/hubble

go 1.26.8

require (
	github.com/cilium/cilium v1.20.2
	google.golang.org/grpc v1.83.1
	google.golang.org/protobuf v1.36.12
	tapestry.dev/tapestry v0.0.0
)

require (
	golang.org/x/net v0.62.0 // indirect
	golang.org/x/sys v0.50.0 // indirect
	golang.org/x/text v0.44.0 // indirect
	google.golang.org/genproto/googleapis/rpc v0.0.0-20260622175928-b703f567277d // indirect
)

replace tapestry.dev/tapestry => ../..
