package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion is the group and version of the kinds here.
var GroupVersion = schema.GroupVersion{Group: "tapestry.dev", Version: "v1alpha1"}

// AddToScheme registers the kinds with s.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion, &AddressPool{}, &AddressPoolList{}, &L2Advertisement{}, &L2AdvertisementList{},
		&BGPPeer{}, &BGPPeerList{}, &BGPAdvertisement{}, &BGPAdvertisementList{},
		&EgressAddress{}, &EgressAddressList{})
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}
