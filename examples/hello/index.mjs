// The smallest function that says something of its own.
export const handler = async (event, context) => {
  console.log(`greeting ${event.name ?? "nobody in particular"}`);
  return { message: `Hello, ${event.name ?? "world"}!`, requestId: context.awsRequestId };
};
