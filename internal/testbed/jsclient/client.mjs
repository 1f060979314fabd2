// What a JavaScript client does for the tests, in Node.js and in a browser alike. run takes one command, as the Go side
// sends it, and resolves with what the command returns.
import { ClientEvent, createClient, MatrixEventEvent, RoomStateEvent } from "matrix-js-sdk";
import { CryptoEvent } from "matrix-js-sdk/lib/crypto-api/index.js";
import { SyncState } from "matrix-js-sdk/lib/sync.js";

import { refreshDevices } from "./refresh.mjs";

const clients = new Map();

export async function run({ client: name, command, args }, useIndexedDB) {
    const f = commands[command];
    if (!f) throw new Error(`no such command: ${command}`);
    if (command === "login") return login(name, args, useIndexedDB);
    const device = clients.get(name);
    if (!device) throw new Error(`${name} has not signed in`);
    return f(device, args);
}

class Device {
    constructor(client) {
        this.client = client;
        this.crypto = client.getCrypto();
        this.events = new Map();
        this.waiting = new Set();
        const wake = () => this.waiting.forEach((look) => look());
        client.on(ClientEvent.Event, (event) => {
            this.events.set(event.getId(), event);
            wake();
        });
        for (const event of [ClientEvent.Sync, MatrixEventEvent.Decrypted, RoomStateEvent.Members, CryptoEvent.DevicesUpdated]) {
            client.on(event, wake);
        }
    }

    // until resolves with the first value other than undefined that f gives, looking again whenever something happened.
    until(f, what, { timeoutMs }) {
        return new Promise((resolve, reject) => {
            const end = (settle, value) => {
                clearTimeout(timer);
                this.waiting.delete(look);
                settle(value);
            };
            const look = async () => {
                try {
                    const value = await f();
                    if (value !== undefined) end(resolve, value);
                } catch (error) {
                    end(reject, error);
                }
            };
            const timer = setTimeout(() => end(reject, new Error(`waited too long: ${what()}`)), timeoutMs);
            this.waiting.add(look);
            look();
        });
    }

    // known lists the devices that the client's own store has, asking nobody, with whether their owner has signed them.
    async known(user) {
        const devices = (await this.crypto.getUserDeviceInfo([user], false)).get(user) ?? new Map();
        const signed = {};
        for (const id of devices.keys()) {
            signed[id] = (await this.crypto.getDeviceVerificationStatus(user, id))?.signedByOwner ?? false;
        }
        return { devices: signed, crossSigning: await this.crypto.userHasCrossSigningKeys(user, false) };
    }
}

async function login(name, { url, localpart, password, deviceName, register }, useIndexedDB) {
    const nobody = createClient({ baseUrl: url });
    const account = register
        ? await nobody.registerRequest({
              username: localpart, password, initial_device_display_name: deviceName, auth: { type: "m.login.dummy" },
          })
        : await nobody.loginRequest({
              type: "m.login.password", identifier: { type: "m.id.user", user: localpart }, password,
              initial_device_display_name: deviceName,
          });
    await open(name, url, account, useIndexedDB);
    return {
        user: account.user_id, device: account.device_id, token: account.access_token,
        crypto: clients.get(name).crypto.getVersion(),
    };
}

// open makes the client of a device that has signed in. In a browser it finds the keys that the device has had before.
async function open(name, baseUrl, { user_id: userId, device_id: deviceId, access_token: accessToken }, useIndexedDB) {
    const client = createClient({ baseUrl, userId, deviceId, accessToken });
    await client.initRustCrypto({ useIndexedDB, cryptoDatabasePrefix: name });
    clients.set(name, new Device(client));
}

const commands = {
    login,

    // reopen is what closing a page and opening it again is: the keys are kept, and everything else begins anew.
    async reopen({ client }) {
        client.stopClient();
        const account = { user_id: client.getUserId(), device_id: client.getDeviceId(), access_token: client.getAccessToken() };
        const [name] = [...clients].find(([, device]) => device.client === client);
        await open(name, client.getHomeserverUrl(), account, true);
    },

    async startSync(device, args) {
        await device.client.startClient({ initialSyncLimit: 20 });
        const ready = () => ([SyncState.Prepared, SyncState.Syncing].includes(device.client.getSyncState()) ? true : undefined);
        return device.until(ready, () => `the sync is ${device.client.getSyncState()}`, args);
    },

    async createRoom({ client }, { invite }) {
        const content = { algorithm: "m.megolm.v1.aes-sha2" };
        const room = await client.createRoom({
            preset: "private_chat", invite, initial_state: [{ type: "m.room.encryption", state_key: "", content }],
        });
        return room.room_id;
    },

    async join({ client }, { room, via }) {
        await client.joinRoom(room, { viaServers: [via] });
    },

    // awaitMember resolves when user is in the room, and the client would encrypt there.
    awaitMember(device, args) {
        return device.until(async () => {
            const joined = device.client.getRoom(args.room)?.getMember(args.user)?.membership === "join";
            return joined && (await device.crypto.isEncryptionEnabledInRoom(args.room)) ? true : undefined;
        }, () => `${args.user} is not in ${args.room}`, args);
    },

    async send({ client }, { room, text }) {
        return (await client.sendTextMessage(room, text)).event_id;
    },

    // awaitMessage resolves with the text as soon as the message could be decrypted.
    awaitMessage(device, args) {
        const event = () => device.events.get(args.event);
        return device.until(() => {
            const readable = event() && !event().isBeingDecrypted() && !event().isDecryptionFailure() && event().getClearContent();
            return readable ? event().getContent().body : undefined;
        }, () => `the message is ${event()?.decryptionFailureReason ?? "not here"}`, args);
    },

    // awaitUndecryptable resolves with the reason as soon as the message has come and could not be decrypted.
    awaitUndecryptable(device, args) {
        return device.until(() => {
            const event = device.events.get(args.event);
            if (!event || event.isBeingDecrypted()) return undefined;
            if (!event.isDecryptionFailure() && event.getClearContent()) throw new Error("the message can be read");
            return event.decryptionFailureReason ?? undefined;
        }, () => "the message is not here", args);
    },

    known(device, { user }) {
        return device.known(user);
    },

    // awaitDevice resolves as soon as the client's own store has that device of user.
    awaitDevice(device, args) {
        return device.until(async () => {
            return args.device in (await device.known(args.user)).devices ? true : undefined;
        }, () => `${args.device} is not known`, args);
    },

    // awaitVouchedFor resolves as soon as the client's own store has that device of user, signed by them.
    awaitVouchedFor(device, args) {
        return device.until(async () => {
            const { devices, crossSigning } = await device.known(args.user);
            return crossSigning && devices[args.device] ? true : undefined;
        }, () => `${args.device} is not known, or not signed`, args);
    },

    async setUpCrossSigning(device, { password }) {
        await device.crypto.bootstrapCrossSigning({
            setupNewCrossSigning: true,
            authUploadDeviceSigningKeys: (request) => request({
                type: "m.login.password", identifier: { type: "m.id.user", user: device.client.getUserId() }, password,
            }),
        });
    },

    // deleteDevice signs another device of the user out, with the password.
    async deleteDevice({ client }, { device, password }) {
        const identifier = { type: "m.id.user", user: client.getUserId() };
        try {
            await client.deleteDevice(device);
        } catch (error) {
            if (!error.data?.session) throw error;
            await client.deleteDevice(device, { type: "m.login.password", identifier, password, session: error.data.session });
        }
    },

    refresh({ client }, { user, patienceMs }) {
        return refreshDevices(client, user, patienceMs);
    },

    stop({ client }) {
        client.stopClient();
    },
};
